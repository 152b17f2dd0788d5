bishare generate nowhere --model llama-7b
