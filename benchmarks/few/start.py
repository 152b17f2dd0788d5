"""Where should a new task start? See notes/2026-11-30-starting.md.

    start.py --tune      # train libraries and choose learning rates, on validation tasks
    start.py             # all cells that start.jsonl does not have yet
    start.py --tables    # the tables of the note

Interrupt it as you like: a cell is stored when it is over, and is not run again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

# Before torch is loaded: one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

import torch
from harness.page import write_below
from torch import Tensor

from bishare_dsl.train.many.start import weights
from few import members, rivals
from few.bench import LIBRARY, Bench
from few.late import Late
from few.methods import SHOWN, in_context, learn, nearest, stacked, untrained
from few.start_tables import lines
from few.training import LADDER, LIBRARY_EACH, Batch, Library, Subject, adapted, score

OLDER = HERE / "results.jsonl"
"""Of notes/2026-11-29-few.md: rivals on the same tasks, examples and test items."""
RESULTS, PAGE = HERE / "start.jsonl", HERE.parent / "notes" / "2026-11-30-starting.md"
OLD, FRESH = ("thresholds", "renames", "ratings", "styles"), ("desks", "patients", "replies")
EVERY = ("thresholds", "desks", "patients", "renames", "replies", "ratings", "styles")
AGREE = ("thresholds", "desks", "patients", "replies")
"""Families in which two tasks give an item the same answer more often than not."""
NUMBERS = ("thresholds", "patients")
"""Families that a rule of one line solves."""
STARTS = {"mean": 0.0, "mixture_0.1": 0.1, "mixture": 1.0, "nearest_member": float("inf")}
"""Sums of members at a fixed sharpness."""
MEMBERS = ("members",)
"""One cell gives the rows of `zero`, of each of `STARTS`, of `left_out` and of `auto`."""
FIRST_NEW, NEW, SEEDS = 5000, 20, (0, 1)
"""The first new task and how many there are, and seeds of libraries, examples and initial values."""
FREE = ("base", "joint", "majority", "nearest", "by_numbers")
FIRST = ("members", "joint_continued", "lora", "lora1", *FREE)
CORE4 = ("members4", "library_joint")
BLOCKS = ("lora1_all", "lora_all")


def cells() -> Iterator[tuple[str, str, int, int]]:
    """Yield family, method, examples and library tasks in the order of their worth."""
    three, sizes = AGREE[:3], ("members", "joint", "joint_continued")
    sums = ("lorahub", "peft_mean", "peft_mixture")
    orders: list[tuple[tuple[str, ...], int, int, tuple[str, ...]]] = [
        (EVERY, 8, LIBRARY, FIRST),
        (three, 8, LIBRARY, ("members4",)),
        (("thresholds",), 8, LIBRARY, ("grown",)),
        # From here on in the order of the second run of 1 December, what decides a sentence first.
        (three, 4, LIBRARY, FIRST),
        (NUMBERS, 16, LIBRARY, FIRST),
        (AGREE, 8, LIBRARY, ("lorahub",)),
        (NUMBERS, 8, LIBRARY, sums),
        (("thresholds",), 8, 64, sizes),
        (FRESH, 8, LIBRARY, ("in_context",)),
        (("renames",), 16, LIBRARY, FIRST),
        (("renames",), 4, LIBRARY, FIRST),
        (("thresholds",), 2, LIBRARY, FIRST),
        (("thresholds",), 64, LIBRARY, FIRST),
        (("desks",), 16, LIBRARY, FIRST),
        (("renames", "desks"), 8, LIBRARY, sums),
        (("thresholds",), 8, 4, sizes),
        (three, 8, LIBRARY, CORE4),
        (("thresholds",), 8, LIBRARY, BLOCKS),
        (EVERY, 16, LIBRARY, FIRST),
        (EVERY, 4, LIBRARY, FIRST),
        (EVERY, 2, LIBRARY, FIRST),
        (EVERY, 8, LIBRARY, sums),
        (("replies",), 8, LIBRARY, CORE4),
        (three, 8, 64, sizes),
        (three, 8, 4, sizes),
        # From here on in the order of the fourth run, on 1 December at 11:16.
        (AGREE, 64, LIBRARY, FIRST),
        (AGREE, 8, LIBRARY, BLOCKS),
        (("thresholds",), 8, 256, sizes),
        (EVERY, 64, LIBRARY, FIRST),
        (EVERY, 8, LIBRARY, BLOCKS),
    ]
    for families, count, tasks, methods in orders:
        for family in families:
            for method in methods:
                if method == "by_numbers" and family not in NUMBERS:
                    continue
                if family == "replies" and (method == "nearest" or method.startswith("peft")):
                    continue
                yield family, method, count, tasks


class StartBench(Bench):
    """As `Bench`, with the methods that start from members."""

    @cached_property
    def whole(self) -> Late:
        """All blocks."""
        return Late(self.model, len(self.model.model.layers))

    def subject(self, family: str) -> Subject:
        """Return a family; ``FAMILY in all blocks`` has its states below the first block."""
        name, _, everywhere = family.partition(" in all")
        if family not in self.subjects:
            late = self.whole if everywhere else self.late
            self.subjects[family] = Subject(name, lambda: self.model, self.tokenizer, late)
        return self.subjects[family]

    def library(self, family: str, tasks: int, method: str = "core") -> Library:
        return stacked(self.libraries(family, method, tasks), SEEDS)

    def rate(self, family: str, method: str) -> float:
        return LADDER[self.place(family, method, 8)]

    def judge(self, family: str, method: str, count: int, tasks: int) -> None:
        """Run a cell, if it is not stored."""
        key = {"part": "judged", "family": family, "method": method, "n": count, "T": tasks}
        if method.startswith("members"):
            if not self.known(**{**key, "method": f"auto{method[7:]}"}):
                self.judge_members(family, method[7:], count, tasks)
            return
        if self.known(**key):
            return
        began, more = time.process_time(), dict[str, object]()
        everywhere = " in all blocks" if method in BLOCKS else ""
        subject = self.subject(family + everywhere)
        lanes = [[(FIRST_NEW + i, seed) for i in range(NEW)] for seed in SEEDS]
        batch = subject.batch(lanes, count, new=True)
        asked = batch.tested.shape[2] // batch.parts
        if method == "nearest":
            right = nearest(subject, batch, subject.final)
        elif method == "by_numbers":
            right = rivals.by_numbers(subject, batch)
        elif method == "majority":
            right = rivals.majority(subject, lanes, count, tasks)
        elif method in ("base", "joint"):
            library = self.library(family, tasks, "joint") if method == "joint" else {}
            right = untrained(subject, library, batch)
        elif method == "in_context":
            right, asked = in_context(subject, self.model, batch), asked // SHOWN
        elif method == "lorahub":
            library = self.library(family, tasks)
            right = score(adapted(subject, rivals.lorahub(subject, library, batch), batch), batch)
        elif method.startswith("peft"):
            right = self.of_loras(subject, batch, method, tasks)
        else:
            placed = self.placed(family, method) if family in OLD else method
            place = self.place(family + everywhere, placed, count)
            began = time.process_time()
            some = self.libraries(family, method, tasks)
            right, numbers = learn(subject, placed, some, batch, SEEDS, [place] * len(SEEDS))
            more = {"own": numbers, "rate": LADDER[place]}
        seconds = round(time.process_time() - began, 1)
        self.add(**key, **more, right=right.tolist(), asked=asked, cpu_s=seconds)

    def of_loras(self, subject: Subject, batch: Batch, method: str, tasks: int) -> Tensor:
        """Judge sums of LoRAs that were trained one by one."""
        loras, _ = rivals.alone(subject, tasks)
        count, new = batch.rows.shape[:2]
        mix = torch.full((count, new, tasks), 1 / tasks)
        if method == "peft_mixture":
            mix = weights(members.losses(subject, loras, batch).sum(-1), 1.0)
        return score(adapted(subject, rivals.summed(loras, mix), batch), batch)

    def judge_members(self, family: str, rank: str, count: int, tasks: int) -> None:
        """Judge everything that starts from a library's members, on the same examples."""
        subject, library = self.subject(family), self.library(family, tasks, f"core{rank}")
        place = self.place(family, f"core{rank}", count)
        lanes = [[(FIRST_NEW + i, seed) for i in range(NEW)] for seed in SEEDS]
        batch = subject.batch(lanes, count, new=True)
        asked = batch.tested.shape[2] // batch.parts
        key = {"part": "judged", "family": family, "n": count, "T": tasks}
        left = self.left(family, rank, tasks)
        began = time.process_time()
        known = members.losses(subject, library, batch)
        weighing = round(time.process_time() - began, 2)
        own = sum(p[0, 0].numel() for site, p in library.items() if site.role == "core")

        def add(method: str, right: Tensor, **more: object) -> None:
            row = {**key, "method": f"{method}{rank}", "own": own, **more}
            seconds = round(time.process_time() - began, 1)
            self.add(**row, right=right.tolist(), asked=asked, cpu_s=seconds)

        for method, sharpness in (*STARTS.items(), ("left_out", None)):
            sums = known.sum(-1)
            at = left[0] if sharpness is None else [sharpness] * len(sums)
            mix = torch.stack([weights(some, s) for some, s in zip(sums, at, strict=True)])
            tensors = members.mixed(library, mix)
            right = score(adapted(subject, tensors, batch), batch)
            add(method, right, weighing=weighing, sharpness=at)
        rates = [LADDER[place]] * len(SEEDS)
        began = time.process_time()
        found = members.auto(subject, library, batch, known, rates, left)
        add("zero", score(adapted(subject, found.zero, batch), batch), rate=LADDER[place])
        right = score(adapted(subject, found.chosen, batch), batch)
        add("auto", right, wins=found.wins.tolist(), folds=found.folds, ahead=left[1])

    def left(self, family: str, rank: str, tasks: int) -> tuple[list[float], list[float]]:
        """Return the sharpness of each library and how far members are ahead, by leaving members out."""
        key = {"part": "left out", "family": family, "T": tasks, "rank": rank}
        known = self.known(**key)
        if known is None:
            began = time.process_time()
            subject, library = self.subject(family), self.library(family, tasks, f"core{rank}")
            lanes = [[(1000 * seed + i, 0) for i in range(tasks)] for seed in SEEDS]
            batch = subject.batch(lanes, LIBRARY_EACH, new=False)
            rates = [self.rate(family, f"core{rank}")] * len(SEEDS)
            _, _, records = members.left_out(subject, library, batch, rates)
            seconds = round(time.process_time() - began, 1)
            self.add(**key, records=records, cpu_s=seconds)
            known = self.found[-1]
        records = known["records"]
        return [r["sharpness"] for r in records], [r["ahead"] for r in records]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", action="store_true", help="judge nothing")
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    bench = StartBench(OLDER, RESULTS)
    if options.tables:
        write_below(PAGE, "start.py", lines(bench.found))
        return
    for family, method, count, tasks in cells():
        if not options.tune:
            bench.judge(family, method, count, tasks)
        elif method.startswith("members"):
            bench.place(family, f"core{method[7:]}", count)
        elif method in ("joint_continued", "lora", "lora1", "library_joint", "grown"):
            bench.place(family, method, count)


if __name__ == "__main__":
    main()
