bishare train lora --model tiny --data rows.jsonl --output_dir out --lr_scheduler_type cosin
