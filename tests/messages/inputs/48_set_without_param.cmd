bishare plan 48.share --model llama-7b --set r=8
