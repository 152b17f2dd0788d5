bishare export my-adapter --model llama-7b --out peft --experts each
