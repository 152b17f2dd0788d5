bishare train lora --model smollm2-135m --data rows.jsonl --output_dir out
