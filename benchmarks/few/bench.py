"""The model, the families and the results of a benchmark, and the learning rate of each method."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from harness.model import smollm2_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from bishare_dsl.resources import cache_folder
from few.late import Late
from few.methods import METHODS, learn
from few.training import LADDER, Library, Subject, libraries

VALIDATION, LIBRARY = 6, 16
"""Tasks to choose rates by, and tasks of a library in the primary comparison."""
LORA1 = ("lora1", "lora1_up", "lora1_late")
"""Of these the best placed is judged."""
TUNED_AT = {2: 8, 4: 8, 8: 8, 16: 8, 64: 32}
"""The count of examples at which a count's rates are chosen."""


def climb(
    center: int, tried: Callable[[list[int]], Sequence[float]]
) -> tuple[int, dict[int, float]]:
    """Return the best of three rates around a center, or of up to two more beyond an edge.

    Args:
        center: a place on the ladder.
        tried: returns the accuracy of each place.
    """
    places = [center - 1, center, center + 1]
    found = dict(zip(places, tried(places), strict=True))
    for _ in range(2):
        best = max(found, key=lambda place: found[place])
        further = best + (1 if best == max(found) else -1)
        if further in found or not 0 <= further < len(LADDER):
            break
        found |= dict(zip([further], tried([further]), strict=True))
    return max(found, key=lambda place: found[place]), found


class Bench:
    """The model, the families and what was found so far.

    Args:
        files: of results; new ones go into the last.
    """

    def __init__(self, *files: Path) -> None:
        self.subjects: dict[str, Subject] = {}
        self.file = files[-1]
        texts = [file.read_text() for file in files if file.exists()]
        self.found = [json.loads(line) for text in texts for line in text.splitlines()]
        self.tokenizer = AutoTokenizer.from_pretrained(smollm2_folder(cache_folder()))

    @cached_property
    def model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            smollm2_folder(cache_folder()), dtype=torch.float32
        ).eval()

    @cached_property
    def late(self) -> Late:
        return Late(self.model)

    def subject(self, family: str) -> Subject:
        if family not in self.subjects:
            self.subjects[family] = Subject(family, lambda: self.model, self.tokenizer, self.late)
        return self.subjects[family]

    def libraries(self, family: str, method: str, tasks: int) -> list[Library]:
        kind = "joint" if method == "joint" else METHODS[method].library
        return libraries(self.subject(family), kind, tasks)[0] if kind else []

    def add(self, **row: Any) -> None:
        """Store a result."""
        self.found.append(row)
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print({k: v for k, v in row.items() if k != "right"}, flush=True)

    def known(self, **row: Any) -> dict[str, Any] | None:
        """Return the stored result with these entries."""
        return next((r for r in self.found if row.items() <= r.items()), None)

    def place(self, family: str, method: str, count: int) -> int:
        """Return the rate that is best on the validation tasks, by its place on the ladder."""
        key = {"part": "tuning", "family": family, "method": method, "n": TUNED_AT[count]}
        known = self.known(**key)
        if known is None:
            began = time.process_time()
            subject, some = self.subject(family), self.libraries(family, method, LIBRARY)
            tasks = [(9000 + i, 0) for i in range(VALIDATION)]

            def tried(places: list[int]) -> list[float]:
                batch = subject.batch([tasks] * len(places), TUNED_AT[count], new=True)
                right, _ = learn(subject, method, some, batch, [0] * len(places), places)
                return (right.float().mean(1) * batch.parts / batch.tested.shape[2]).tolist()

            center = METHODS[method].center if method in METHODS else 1e-2
            best, found = climb(LADDER.index(center), tried)
            accuracy = {LADDER[p]: round(a, 4) for p, a in sorted(found.items())}
            seconds = round(time.process_time() - began, 1)
            self.add(**key, best=best, rate=LADDER[best], accuracy=accuracy, cpu_s=seconds)
            known = self.found[-1]
        return int(known["best"])

    def placed(self, family: str, method: str) -> str:
        """Return the best placed LoRA of rank 1 on the validation tasks, for its method."""
        if method != "lora1":
            return method
        for name in LORA1:
            self.place(family, name, 8)
        rows = [self.known(part="tuning", family=family, method=name, n=8) for name in LORA1]
        return max(rows, key=lambda row: max(row["accuracy"].values()))["method"]  # type: ignore[index, union-attr]
