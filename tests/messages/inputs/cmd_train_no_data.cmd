bishare train lora --model tiny --output_dir out
