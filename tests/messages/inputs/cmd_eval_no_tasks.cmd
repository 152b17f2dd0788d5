bishare eval nowhere --model llama-7b
