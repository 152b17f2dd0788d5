"""Does a library help a new task with few examples? See notes/2026-11-29-few.md.

    run.py --tune      # train libraries and choose rates, on validation tasks
    run.py             # all cells that results.jsonl does not have yet
    run.py --tables    # the tables of the note

Interrupt it as you like: a cell is stored when it is over, and is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

# Before torch is loaded: one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

import torch
from harness.model import smollm2_folder
from harness.page import write_below
from transformers import AutoModelForCausalLM, AutoTokenizer

from bishare_dsl.resources import cache_folder
from few.late import Late
from few.methods import HEADS, LORA1, METHODS, SHOWN, in_context, learn, nearest, untrained
from few.tables import lines
from few.training import LADDER, Library, Subject, libraries

FOUND, PAGE = HERE / "results.jsonl", HERE.parent / "notes" / "2026-11-29-few.md"
NEW, VALIDATION, SEEDS = 20, 6, (0, 1)
"""New tasks, tasks to choose rates by, and seeds of libraries, examples and initial values."""
COMPARED = ("thresholds", "renames", "ratings", "styles")
"""Families."""
LIBRARY = 16
"""Tasks of a library in the primary comparison."""
STRANGE = {"thresholds": "renames", "renames": "thresholds"}
"""The control: a family, and the other family that its library is of."""
FREE = ("nearest", "base", "joint")
FIRST = ("core", "lora", "joint_tiny", "library_joint", "joint_continued", "lora_at_mean", "lora1")
"""Of the primary comparison at every count of examples."""
FEWER = ("core", "lora", "joint_tiny", "library_joint", "joint_continued", "lora1", "lora_xs")
REST = ("lora_xs", *HEADS, "shuffled", "core_at_mean")
OWN, SIZED = ("core4", "core2", "core1"), ("thresholds", "renames")
"""Fewer own numbers, and the families where they are tried."""
SHARED = ("core", "joint_tiny", "library_joint", "joint_continued", "lora_at_mean", "joint")
TUNED_AT = {2: 8, 4: 8, 8: 8, 16: 8, 32: 32, 64: 32}
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


def cells() -> Iterator[tuple[str, str, int, int]]:
    """Yield family, method, examples and library tasks in the order of their worth."""
    orders: list[tuple[int, int, tuple[str, ...]]] = [
        (8, LIBRARY, (*FIRST, *FREE)),
        (8, LIBRARY, REST),
        (0, 0, ()),  # The control.
        (32, LIBRARY, (*FIRST, *FREE)),
        (8, LIBRARY, ("in_context", "lora_longer")),
        (8, 4, SHARED),
        (8, 64, SHARED),
        (16, LIBRARY, (*FEWER, *FREE)),
        (4, LIBRARY, (*FEWER, *FREE)),
        (32, LIBRARY, (*REST, "in_context")),
        (64, LIBRARY, (*FEWER, *FREE)),
    ]
    for count, tasks, methods in orders:
        for family in COMPARED:
            more = OWN if methods == REST and family in SIZED else ()
            yield from ((family, method, count, tasks) for method in (*methods, *more))
        for family in () if count else STRANGE:
            yield from ((f"{family} by strangers", method, 8, LIBRARY) for method in SHARED)


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
        kind = (
            {"joint": "joint", **HEADS}.get(method)
            if method not in METHODS
            else METHODS[method].library
        )
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

    def judge(self, family: str, method: str, count: int, tasks: int) -> None:
        """Run a cell, if it is not stored."""
        key = {"part": "judged", "family": family, "method": method, "n": count, "T": tasks}
        if self.known(**key):
            return
        began = time.process_time()
        own, _, strange = family.partition(" by ")
        source = STRANGE[own] if strange else own
        subject, more = self.subject(own), {}
        lanes = [[(5000 + i, seed) for i in range(NEW)] for seed in SEEDS]
        batch, asked = subject.batch(lanes, count, new=True), 48
        some = self.libraries(source, method, tasks)
        stack = {s: torch.cat([library[s] for library in some]) for s in some[0]} if some else {}
        if method == "nearest":
            right = nearest(subject, batch, subject.final)
        elif method in FREE:
            right = untrained(subject, stack, batch)
        elif method == "in_context":
            right, asked = in_context(subject, self.model, batch), 48 // SHOWN
        else:
            placed = self.placed(own, method)
            place = self.place(own, placed, count)
            began = time.process_time()
            right, numbers = learn(subject, placed, some, batch, SEEDS, [place] * len(SEEDS))
            more = {"own": numbers, "rate": LADDER[place], "placed": placed}
        seconds = round(time.process_time() - began, 1)
        self.add(**key, **more, right=right.tolist(), asked=asked, cpu_s=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", action="store_true", help="judge nothing")
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    bench = Bench(FOUND)
    if options.tables:
        write_below(PAGE, "run.py", lines(bench.found))
        return
    for family, method, count, tasks in cells():
        if options.tune:
            if " by " not in family and method not in (*FREE, "in_context"):
                bench.place(family, bench.placed(family, method), count)
        else:
            bench.judge(family, method, count, tasks)


if __name__ == "__main__":
    main()
