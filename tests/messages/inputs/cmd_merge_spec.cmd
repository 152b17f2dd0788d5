bishare merge lora --model llama-7b --out x
