bishare chek t.share
