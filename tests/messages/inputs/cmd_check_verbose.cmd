bishare check t.share --verbose
