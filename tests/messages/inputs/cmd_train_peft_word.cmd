bishare train lora --model_name_or_path tiny --data rows.jsonl --output_dir out
