bishare plan t.share --model llama-7b --budget 10 --solve r
