bishare train owner/adapter --model tiny --data rows.jsonl --output_dir out
