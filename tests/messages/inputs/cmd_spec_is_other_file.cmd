bishare check rows.jsonl
