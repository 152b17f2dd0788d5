bishare train lora --model tiny --data rows.jsonl --output_dir out --lr 1e-4
