bishare train lora --model tiny --data rows.jsonl --output_dir out --learning_rat 1e-4
