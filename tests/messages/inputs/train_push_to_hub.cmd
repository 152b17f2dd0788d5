bishare train lora --model tiny --data rows.jsonl --output_dir out --push_to_hub true
