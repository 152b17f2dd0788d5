bishare plan t.share --model lama-7b
