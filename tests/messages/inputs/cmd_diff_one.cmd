bishare diff t.share --model llama-7b
