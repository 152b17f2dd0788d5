bishare train lora --model tiny --data rows.jsonl --output_dir out --load_in_8bit true
