"""What a folder says of its base, its task and its licence, which a conversion carries over."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from bishare_dsl.convert.peft_config import CONFIG
from bishare_dsl.plan import Plan
from bishare_dsl.reading import MAX_CONFIG, parse_json, read_file
from bishare_dsl.writing import replace_file

CARD = "README.md"
MAX_CARD = 2**20
"""The largest card in bytes; reading YAML is slow."""

_BASE = "base_model_name_or_path"
CONFIG_FIELDS = (_BASE, "revision", "task_type")
_CARD_FIELDS = (
    "base_model", "license", "license_name", "license_link", "language", "datasets", "tags",
    "pipeline_tag",
)  # fmt: skip


_TRAINING = re.compile(r"(?ms)(^## Training\n\n)(.*?)(?=\n+## |\Z)")
"""The section on training, up to the next one."""


def training_in(text: str) -> str | None:
    """Return what a card says of the training of its adapter; None if that is to be filled in."""
    section = _TRAINING.search(text)
    if section is None or section[2].startswith("Fill in"):
        return None
    return section[2].strip()


def with_training(text: str, training: str) -> str:
    """Return a card that says how its adapter was trained, in its section or in a new one at its end."""
    if _TRAINING.search(text) is None:
        return f"{text.rstrip()}\n\n## Training\n\n{training}\n"
    return _TRAINING.sub(lambda section: section[1] + training, text, count=1)


class Origin(NamedTuple):
    """The set fields of a folder's config and of its card, and what is not carried over.

    Attributes:
        config: fields of the config.
        card: fields of the card's front matter.
        left: what is not carried over, in words.
        training: what the card says of the training; None if it says nothing.
    """

    config: Mapping[str, str] = {}
    card: Mapping[str, Any] = {}
    left: tuple[str, ...] = ()
    training: str | None = None

    def write(self, folder: Path, title: str) -> None:
        """Add the fields to a folder that was just written. Its card keeps its text and its tags."""
        from huggingface_hub import CardData, RepoCard

        path = folder / CONFIG
        card = folder / CARD
        fields = parse_json(path.read_bytes())
        changed = {k: v for k, v in self.config.items() if fields.get(k) != v}
        if changed:
            replace_file(path, (json.dumps(fields | changed, indent=2) + "\n").encode())
        if self.card:
            text = card.read_text("utf-8") if card.is_file() else f"# {title}\n"
            written = RepoCard(text, ignore_metadata_errors=True)
            front = {"library_name": "peft", **vars(written.data), **self.card}
            ours = written.data.get("tags")
            tags = [*(ours if isinstance(ours, list) else ()), *self.card.get("tags", ())]
            written.data = CardData(**front | {"tags": [*dict.fromkeys(tags)] or None})
            replace_file(card, str(written).encode())
        if self.training is not None:
            text = card.read_text("utf-8") if card.is_file() else f"# {title}\n"
            replace_file(card, with_training(text, self.training).encode())

    def left_for(self, target: str) -> tuple[str, ...]:
        """Return what a conversion for a program does not carry over."""
        fields = self.config.keys() | self.card.keys() if target == "gguf" else set()
        lost = sorted({"task_type", "pipeline_tag", "base_model"} & fields)
        return (*self.left, *(f"`{name}`" for name in lost))


def read_origin(folder: Path, plan: Plan) -> Origin:
    """Return the origin of an adapter's folder; parts that cannot be read are empty.

    The name of a family, which ``plan`` may have, is not the name of the base.
    """
    from huggingface_hub import RepoCard

    fields: dict[str, Any] = {}
    front: dict[str, Any] = {}
    body = ""
    with suppress(OSError, ValueError):
        fields = parse_json(read_file(folder, CONFIG, MAX_CONFIG))
    with suppress(Exception):  # YAML of a stranger; a card adds nothing to the weights.
        body = read_file(folder, CARD, MAX_CARD).decode("utf-8", "replace")
        card = RepoCard(body)
        front = vars(card.data)
        body = card.text
    kept = {name: front[name] for name in _CARD_FIELDS if _is_text(front.get(name))}
    if isinstance(kept.get("tags"), str):
        kept["tags"] = [kept["tags"]]
    config = {k: fields[k] for k in CONFIG_FIELDS if isinstance(fields.get(k), str)}
    if config.get(_BASE) == plan.base.name != plan.base.model_id:
        del config[_BASE]
    names = sorted(map(str, front.keys() - kept.keys() - {"library_name", "base_model_relation"}))
    left = [f"`{name}` of its card" for name in names]
    training = training_in(body)
    if body.strip():
        left.append("the text of its card" if training is None else "the other text of its card")
    return Origin(config, kept, tuple(left), training)


def _is_text(value: Any) -> bool:
    """Tell whether a field is a text or a list of texts, as GGUF and the Hub take."""
    texts = value if isinstance(value, list) else [value]
    return bool(value) and all(isinstance(text, str) for text in texts)


NONE = Origin()
"""The origin of an adapter without a folder."""
