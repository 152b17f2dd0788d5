bishare train lora --model tiny --data rows.jsonl --output_dir out --lora_r 8
