"""Strategies, references and ready checks that the tests use, and users may too.

| module | |
|---|---|
| `models` | tiny random models, one a family |
| `quantised` | layers of few bits for them |
| `fetch` | SmolLM2-135M, the real model of the demo and of the end-to-end tests |
| `tokenizer` | a tokenizer for them |
| `plans` | strategies for models, pools, and specs that fit |
| `reference` | dense references of the transforms, from the paper's equations |
| `checks` | `check_spec(spec, model)`, `check_transform(transform, rank, widths)` and their parts |

Hypothesis is needed by the strategies, PEFT by the check of exports.
"""
