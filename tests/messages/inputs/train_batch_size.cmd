bishare train lora --model tiny --data rows.jsonl --output_dir out --batch_size 8
