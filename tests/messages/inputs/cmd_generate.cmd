bishare generate my-adapter --prompt "Why is the sky blue?"
bishare chat my-adapter
