bishare convert my-adapter --model llama-7b --out peft --experts each
bishare plan lora --model llama-7b --solve r
bishare train lora --model tiny --data rows.jsonl --output_dir out --packing
bishare analyse my-adapter --model llama-7b
bishare show lora --model llama-7b --html sharing.html
bishare inspect adapters --format csv
bishare fit my-adapter --spec lora --out new --sweeps 9
