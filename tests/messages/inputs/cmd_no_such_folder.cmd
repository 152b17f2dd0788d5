bishare plan t.share --model ./nowhere
