"""The model card of an adapter folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from bishare_dsl.convert.origin import CARD, with_training
from bishare_dsl.folder.config import AdapterConfig
from bishare_dsl.plan import Plan
from bishare_dsl.reading import MAX_CONFIG, parse_json, read_file
from bishare_dsl.writing import replace_file

STARTS = "start.json"
"""What a library knows of how new tasks start: a record of `bishare_dsl.train.many.start`."""

MARK = "<!-- bishare writes this card anew when it saves; without this line it leaves the card alone. -->"
_TEMPLATE_OF_PEFT = re.compile(r"(?ms)^# Model Card for Model ID$.*\[More Information Needed\]")


TO_FILL_IN = "Fill in: the data, the number of steps and the learning rate."
UNTRAINED = "Not trained: its tensors have the initial values of the spec."


def fill_card(folder: Path, training: str) -> None:
    """Write into the card of a folder how its adapter was trained, unless it has a custom card."""
    path = folder / CARD
    if path.is_file():
        text = path.read_text("utf-8", errors="replace")
        if MARK in text:
            replace_file(path, with_training(text, training).encode())


def write_card(folder: Path, plan: Plan, config: AdapterConfig) -> None:
    """Write an adapter's model card into its folder, unless the folder has a custom card."""
    path = folder / CARD
    if path.is_file():
        text = path.read_text("utf-8", errors="replace")
        if MARK not in text and not _TEMPLATE_OF_PEFT.search(text):
            return
    replace_file(path, (model_card(plan, config) + _new_tasks(folder)).encode())


def _new_tasks(folder: Path) -> str:
    """Say how new tasks of a library start; nothing if it has no record of it that can be read."""
    try:
        record = parse_json(read_file(folder, STARTS, MAX_CONFIG))
        right = f"{record['correct']:.1%} of {record['examples']:,d} examples of members that were left out"
        return f"\n## New tasks\n\nA sum of members of sharpness {record['sharpness']:g} answers {right}.\n"
    except (OSError, LookupError, TypeError, ValueError):
        return ""


def model_card(plan: Plan, config: AdapterConfig) -> str:
    """Return the card, with the Hub's front matter."""
    names = tuple(config.adapters or ())
    hub_id = plan.base.model_id
    name = hub_id or plan.base.name
    parameters = [plan.parameters_line]
    if plan.is_library or names:
        parameters.insert(0, f"each adapter: {plan.owned}")
    file = "card_of_library.md" if names else "card.md"
    card = Path(__file__).with_name(file).read_text(encoding="utf-8")
    return card.format(
        front_matter="\n".join(_front_matter(plan, is_library=bool(names))),
        mark=MARK,
        spec=plan.spec,
        base=f"[{name}](https://huggingface.co/{name})" if hub_id else f"`{name}`",
        parameters="\n    ".join(parameters),
        method="\n".join(_method(plan)),
        count=len(names),
        name=names[0] if names else "",
        load_from=json.dumps(hub_id or config.base_model or name),
        training=UNTRAINED if config.command == "compile" else TO_FILL_IN,
        text=config.spec.strip(),
    )


def _front_matter(plan: Plan, *, is_library: bool) -> Iterator[str]:
    """Yield the lines that the Hub reads."""
    # The Hub rejects a card whose `base_model` is not an id on the Hub.
    hub_id = plan.base.model_id
    yield f"library_name: {'bishare' if is_library else 'peft'}"
    if hub_id:
        yield f"base_model: {hub_id}"
        yield "base_model_relation: adapter"
    if not plan.base.head:
        yield "pipeline_tag: text-generation"
    yield "tags:"
    if hub_id:
        yield f"- base_model:adapter:{hub_id}"
    for tag in ("bishare", "lora", "parameter-sharing"):
        yield f"- {tag}"


def _method(plan: Plan) -> Iterator[str]:
    """Say in words what each share of a plan does, a line each."""
    shared = {pool.tensor for pool in plan.pools if len(pool.members) > 1}
    for share in dict.fromkeys(term.share for term in plan.terms):
        terms = [term for term in plan.terms if term.share == share]
        rank = max(term.rank for term in terms)
        via = terms[0].transform
        used = {name for term in terms for name in term.tensors.values()}
        tensors = f"{len(used)} tensors, {len(used & shared)} of them used by several modules"
        yield f"- `{share}`: `{via}` of rank {rank} at {len(terms)} modules, with {tensors}"
