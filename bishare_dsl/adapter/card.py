"""The model card of an adapter folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bishare_dsl.plan import Plan
from bishare_dsl.writing import replace_file

CARD = "README.md"

_MARK = "<!-- bishare writes this card anew when it saves; without this line it leaves the card alone. -->"
_TEMPLATE_OF_PEFT = re.compile(
    r"^# Model Card for Model ID$.*\[More Information Needed\]", re.MULTILINE | re.DOTALL
)


def write_card(folder: Path, plan: Plan, spec_text: str, names: tuple[str, ...] = ()) -> None:
    """Write an adapter's model card into its folder, unless the folder has a custom card.

    Args:
        names: the adapters of a library.
    """
    path = folder / CARD
    if path.is_file():
        text = path.read_text("utf-8", errors="replace")
        if _MARK not in text and not _TEMPLATE_OF_PEFT.search(text):
            return
    replace_file(path, model_card(plan, spec_text, names).encode())


def model_card(plan: Plan, spec_text: str, names: tuple[str, ...] = ()) -> str:
    """Return the card, with the Hub's front matter; ``names`` lists the adapters of a library."""
    # The Hub rejects a card whose `base_model` is not an id on the Hub.
    hub_id = plan.base.model_id
    front_matter = [
        f"library_name: {'bishare' if names else 'peft'}",
        *([f"base_model: {hub_id}", "base_model_relation: adapter"] if hub_id else []),
        *([] if plan.base.head else ["pipeline_tag: text-generation"]),
        "tags:",
        *([f"- base_model:adapter:{hub_id}"] if hub_id else []),
        *(f"- {tag}" for tag in ("bishare", "lora", "parameter-sharing")),
    ]
    name = hub_id or plan.base.name
    file = "card_of_library.md" if names else "card.md"
    card = Path(__file__).with_name(file).read_text(encoding="utf-8")
    return card.format(
        front_matter="\n".join(front_matter),
        mark=_MARK,
        spec=plan.spec,
        base=f"[{name}](https://huggingface.co/{name})" if hub_id else f"`{name}`",
        parameters="\n    ".join(
            [f"each adapter: {plan.owned}"] * (plan.is_library or bool(names))
            + [plan.parameters_line]
        ),
        what=f"A library of {len(names)} adapters" if names else "An adapter",
        name=names[0] if names else "",
        load_from=json.dumps(name),
        text=spec_text.strip(),
    )
