bishare train lora --model llama-7b --data columns.jsonl --output_dir out
