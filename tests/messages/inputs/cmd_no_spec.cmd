bishare check
