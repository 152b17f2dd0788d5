bishare plan t.share --model llama-7b --set r=4 --set r=8
