"""What checks a transform of one's own.

| module | |
|---|---|
| `checks` | `check_transform(transform, rank, widths)` |
| `reference` | registers a dense reference, from the paper's equation, that it is compared with |
| `models` | a tiny random Llama, or another model |
| `tokenizer` | a tokenizer for it |
"""
