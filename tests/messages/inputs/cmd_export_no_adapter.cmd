bishare export t.share --out x
