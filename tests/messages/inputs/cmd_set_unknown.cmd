bishare plan t.share --model llama-7b --set rank=4
