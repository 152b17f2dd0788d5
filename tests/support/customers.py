"""Customers who call a size big from some limit on, and a library that is trained for three of them."""

import json

from bishare_dsl.folder.files import read_adapter
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.train import train

LIMITS = {"low": 20, "middle": 50, "high": 80}
HOW = {"tokenizer": tiny_tokenizer(), "quiet": True, "learning_rate": 0.03}


def rows(path, limit, count, first=0):
    """Write rows of one customer: sizes from 0 to 96 are big from a limit on."""
    sizes = [(37 * i) % 97 for i in range(first, first + count)]
    lines = [
        {"prompt": f"{n}: ", "completion": "yes" if n > limit else "no", "options": ["yes", "no"]}
        for n in sizes
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def train_library(folder, name="run", **how):
    """Train a library of three customers; return its folder."""
    data = {
        name: rows(folder / f"{name}.jsonl", limit, 24, 30 * i)
        for i, (name, limit) in enumerate(LIMITS.items())
    }
    how = {"params": {"r": 2, "first": -1}, **HOW, **how}
    train("library_core", tiny_model("llama"), data, folder / name, **how)
    return folder / name / "library"


def private_tensors(library, name):
    """The tensors that only this adapter of a library has."""
    stored = read_adapter(f"{library}#{name}")
    return {k: v for k, v in stored.tensors().items() if k not in stored.plan.common}
