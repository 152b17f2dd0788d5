"""The model card of an adapter folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bishare_dsl.plan import Plan
from bishare_dsl.writing import replace_file

CARD = "README.md"
FOLDER = "path/to/this/folder"
"""What a card calls the adapter's folder."""

_MARK = "<!-- bishare writes this card anew when it saves; without this line it leaves the card alone. -->"
_TEMPLATE_OF_PEFT = re.compile(
    r"^# Model Card for Model ID$.*\[More Information Needed\]", re.MULTILINE | re.DOTALL
)

_CARD = """\
---
{front_matter}
---
{mark}

# {spec}

{what} for {base}, made by [bishare](https://pypi.org/project/bishare/): {kind}.

    {parameters}

| share | trainable parameters |
|---|---:|
{shares}

## Use

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({load_from})
{use}
```

{elsewhere}

## Spec

```
{text}
```
"""

_WITH_PEFT = """\

import bishare_dsl.peft  # pip install "bishare[peft]"; without this line PEFT says KeyError: 'BISHARE'
from peft import PeftModel

model = PeftModel.from_pretrained(model, "{folder}")"""
_WITHOUT_PEFT = """\

from bishare_dsl import load_adapter  # pip install bishare

model = load_adapter("{folder}", model)"""
_FACTORS = "low-rank factors that modules share"
_WHOLE = "parameters of its own, trained in full"
_MERGED = """\
`bishare merge` makes a plain model with the adapter merged in."""
_EXPORTED = """\
`bishare merge` makes a plain model with the adapter merged in, and
`bishare export` a LoRA that PEFT {loads}."""
_SERVED = """\
 With
`pip install "bishare[vllm]"`, `vllm serve {base} --enable-lora --lora-modules name={folder}` serves it."""


def write_card(folder: Path, plan: Plan, spec_text: str, names: tuple[str, ...] = ()) -> None:
    """Write the card of an adapter into its folder, unless somebody has written one of their own.

    Args:
        names: of the adapters of a library.
    """
    path = folder / CARD
    if path.is_file():
        found = path.read_text("utf-8", errors="replace")
        if _MARK not in found and not _TEMPLATE_OF_PEFT.search(found):
            return
    replace_file(path, model_card(plan, spec_text, names).encode())


def model_card(plan: Plan, spec_text: str, names: tuple[str, ...] = ()) -> str:
    """Return the card, with the front matter that the Hub reads; ``names`` are those of a library."""
    # The Hub takes a `base_model` that is an id there, and rejects the card for any other.
    tags = ["bishare", "lora", "parameter-sharing"]
    base = []
    if plan.base.model_id:
        base = [f"base_model: {plan.base.model_id}", "base_model_relation: adapter"]
        tags.insert(0, f"base_model:adapter:{plan.base.model_id}")
    front_matter = [
        f"library_name: {'bishare' if names else 'peft'}",
        *base,
        *([] if plan.base.head else ["pipeline_tag: text-generation"]),
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    shares = (f"| {name} | {count:,} |" for name, count in plan.shares.items())
    name = plan.base.model_id or plan.base.name
    folder = f"{FOLDER}#{names[0]}" if names else FOLDER
    if not plan.terms:  # There is no LoRA in it to export.
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
        mark=_MARK,
        spec=plan.spec,
        base=f"[{name}](https://huggingface.co/{name})" if plan.base.model_id else f"`{name}`",
        parameters=plan.parameters_line,
        shares="\n".join(shares),
        what=f"A library of {len(names)} adapters" if names else "An adapter",
        kind=", and ".join(kinds),
        use=(_WITHOUT_PEFT if names else _WITH_PEFT).format(folder=folder).strip(),
        load_from=json.dumps(name),
        elsewhere=elsewhere,
        text=spec_text.strip(),
    )
