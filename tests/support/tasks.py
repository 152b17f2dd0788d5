"""Tasks of lm_eval for tiny models and `tiny_tokenizer`, without a network."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

_LETTERS = "abcdefghij"


def tiny_tasks(folder: Path, *, rows: int = 24) -> Path:
    """Write two tasks into a folder, for ``include_path``; a tiny model scores at chance.

    ``tiny_choose`` picks the likeliest of three words, ``tiny_write`` generates; both have rows for
    few-shot examples.

    Args:
        folder: created if missing.
        rows: the number of rows per task.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)

    def row() -> dict[str, Any]:
        words = ["".join(draw.choices(_LETTERS, k=draw.randint(2, 5))) for _ in range(4)]
        return {"text": words[0], "words": words[1:], "right": draw.randrange(3)}

    for split, count in (("train", 8), ("test", rows)):
        lines = [json.dumps(row()) for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_task(folder, "tiny_choose", output_type="multiple_choice", doc_to_choice="words")
    write_task(
        folder,
        "tiny_write",
        output_type="generate_until",
        doc_to_target="{{words[right]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 6},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    return folder


def write_task(folder: Path, name: str, **config: Any) -> None:
    """Write a task file over the rows of `tiny_tasks`; ``config`` overrides the lm_eval settings."""
    data = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    whole = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": data},
        "training_split": "train",
        "test_split": "test",
        "doc_to_text": "{{text}}:",
        "doc_to_target": "right",
        **config,
    }
    # JSON is YAML.
    (folder / f"{name}.yaml").write_text(json.dumps(whole, indent=2), encoding="utf-8")
