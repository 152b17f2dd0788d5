bishare plan llama-7b t.share
