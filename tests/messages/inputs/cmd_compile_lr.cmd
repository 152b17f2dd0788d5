bishare compile t.share --model llama-7b --lr 1
