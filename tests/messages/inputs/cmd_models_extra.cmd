bishare models llama
