bishare train lora --model tiny --data rows.jsonl --output_dir out --warmup_ratio 0.1
