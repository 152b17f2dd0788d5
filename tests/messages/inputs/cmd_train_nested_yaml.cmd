bishare train lora --model tiny --data rows.jsonl --output_dir out --config nested.yaml
