bishare train lora --model tiny --data rows.jsonl --out out
