bishare plan t.share --model llama-7b --budget much --solve r
