bishare plan t.share --model llama-7b --rank 4
