"""The model card of an adapter folder."""

from __future__ import annotations

import json

from bishare_dsl.plan import Plan

FOLDER = "path/to/this/folder"
"""What a card calls the adapter's folder, until it is on the Hub and has a name."""

_CARD = """\
---
{front_matter}
---

# {spec}

{what} for {base}, made by [bishare](https://pypi.org/project/bishare/): {kind}.

    {parameters}

| share | trainable parameters |
|---|---:|
{shares}

## Use

```python
from transformers import AutoModelForCausalLM
from bishare_dsl import load_adapter

model = AutoModelForCausalLM.from_pretrained({load_from})
model = load_adapter("{folder}", model)
```

`model.bishare.merge_and_unload()` gives a plain model with the adapter merged in{elsewhere}

## Spec

```
{text}
```
"""

_FACTORS = "low-rank factors that modules share"
_WHOLE = "parameters of its own, trained in full"
_EXPORTED = ', and\n`model.bishare.export(folder, format="peft")` a LoRA that PEFT {loads}.'
_SERVED = """\
 With
`pip install "bishare[vllm]"`, `vllm serve {base} --enable-lora --lora-modules name={folder}` serves it."""
_MERGED = ".\nThere is no LoRA in it to export: PEFT and vLLM load the merged model alone."


def model_card(plan: Plan, spec_text: str, names: tuple[str, ...] = ()) -> str:
    """Write README.md, with the front matter that the Hub reads; ``names`` are those of a library."""
    # The Hub takes a `base_model` that is an id there, and rejects the card for any other.
    base = [f"base_model: {plan.base.model_id}", "base_model_relation: adapter"]
    front_matter = [
        "library_name: bishare",
        *(base if plan.base.model_id else []),
        *([] if plan.base.head else ["pipeline_tag: text-generation"]),
        "tags:",
        *(f"- {tag}" for tag in ("bishare", "lora", "parameter-sharing")),
    ]
    shares = (f"| {name} | {count:,} |" for name, count in plan.shares.items())
    name = plan.base.model_id or plan.base.name
    folder = f"{FOLDER}#{names[0]}" if names else FOLDER
    if not plan.terms:
        elsewhere = _MERGED
    elif plan.trained:  # vLLM takes low-rank terms alone.
        elsewhere = _EXPORTED.format(loads="loads")
    else:
        elsewhere = _EXPORTED.format(loads="and vLLM load") + _SERVED.format(
            base=name, folder=folder
        )
    kinds = [_FACTORS] * bool(plan.terms) + [_WHOLE] * bool(plan.trained)
    return _CARD.format(
        front_matter="\n".join(front_matter),
        spec=plan.spec,
        base=f"[{name}](https://huggingface.co/{name})" if plan.base.model_id else f"`{name}`",
        parameters=plan.parameters_line,
        shares="\n".join(shares),
        what=f"A library of {len(names)} adapters" if names else "An adapter",
        kind=", and ".join(kinds),
        folder=folder,
        load_from=json.dumps(name),
        elsewhere=elsewhere,
        text=spec_text.strip(),
    )
