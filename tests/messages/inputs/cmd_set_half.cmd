bishare plan t.share --model llama-7b --set r=1.5
