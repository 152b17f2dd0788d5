bishare convert my-adapter --model llama-7b --out peft --experts each
bishare plan lora --model llama-7b --solve r
bishare train lora --model tiny --data rows.jsonl --output_dir out --packing
bishare analyse my-adapter --model llama-7b --html analysis.html
