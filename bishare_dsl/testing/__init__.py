"""What checks a transform of one's own, and a spec on a model.

| module | |
|---|---|
| `models` | tiny random models, one a family |
| `tokenizer` | a tokenizer for them |
| `reference` | dense references of the transforms, from the paper's equations |
| `checks` | `check_spec(spec, model)`, `check_transform(transform, rank, widths)` and their parts |

PEFT is needed by the check of exports.
"""
