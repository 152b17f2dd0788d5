bishare plan t.share --model llama-7b --budget 3M
