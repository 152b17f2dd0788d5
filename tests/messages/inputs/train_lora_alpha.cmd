bishare train lora --model tiny --data rows.jsonl --output_dir out --lora_alpha 16
