bishare train lora --model tiny --data rows.jsonl --output_dir out --eval_every 5
