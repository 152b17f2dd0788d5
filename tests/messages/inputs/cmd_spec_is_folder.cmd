bishare check .
