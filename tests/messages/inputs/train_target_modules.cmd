bishare train lora --model tiny --data rows.jsonl --output_dir out --target_modules q_proj
