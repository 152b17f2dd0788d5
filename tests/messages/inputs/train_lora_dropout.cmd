bishare train lora --model tiny --data rows.jsonl --output_dir out --lora-dropout 0.1
