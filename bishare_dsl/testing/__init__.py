"""Test your own specs, transforms and servers.

| module | |
|---|---|
| `specs` | holds a spec and a model to the invariants: `check_spec(spec, model)` |
| `fitting_specs` | hypothesis strategies for specs that fit a model, and for small Llamas |
| `any_specs` | hypothesis strategies for all specs and expressions, meaningful or not |
| `checks` | checks a transform: `check_transform(transform, rank, widths)` |
| `reference` | registers a dense reference, from the paper's equation, for comparison |
| `models` | a tiny random Llama, or another model |
| `tokenizer` | a tokenizer for it |
| `cards` | a pytest fixture that checks a server by a probe card |
"""
