bishare plan t.share --modle llama-7b
