bishare plan t.share --model llama-7b r=4
