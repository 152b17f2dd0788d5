bishare plan t.share
