"""Train many tasks in one run of `bishare_dsl.train`, and store their adapters in equal
bytes, three ways.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sweep.data import BATCH, Row
from sweep.methods import METHODS, TOGETHER
from sweep.results import Job, Results
from sweep.running import circumstances
from sweep.tasks import MANY_TASKS, TASKS
from sweep.training import Example, bitmask, encode, evaluate, rows_of

RATE = 2e-3
"""Of all, as it was chosen for LoRA of ranks 2 to 8 on the headlines."""
CUT = 2
"""The rank to which LoRA r=8 is cut."""


class Way(NamedTuple):
    """How the adapters of all tasks are kept; of a run, each that it gives."""

    name: str
    trained: str
    rank: int | None = None


WAYS = (*(Way(name, name) for name in TOGETHER), Way("lora_cut", "lora", CUT))
STEPS = TASKS[MANY_TASKS[0]].together.steps


def jobs(way: str, seed: int) -> list[Job]:
    """Return what a row of the results is about, for each task."""
    return [Job(task, way, RATE, seed, "together") for task in MANY_TASKS]


def left(results: Results, seeds: int) -> Iterator[tuple[str, int]]:
    """Yield the runs that are to be done: the method that is trained, and the seed."""
    for seed in range(seeds):
        for trained in TOGETHER:
            ways = [way.name for way in WAYS if way.trained == trained]
            if any(job not in results for way in ways for job in jobs(way, seed)):
                yield trained, seed


def run_together(results: Results, seeds: int, base: Path, wheels: Path) -> None:
    """Do the runs that are left; the rows of one are written when it is over."""
    parts = {task: rows_of(task, "together", base, wheels) for task in MANY_TASKS}
    tests = {task: encode(rows["test"], base) for task, rows in parts.items()}
    for trained, seed in [*left(results, seeds)]:
        began = time.process_time()
        made = _train(trained, seed, base, {task: rows["train"] for task, rows in parts.items()})
        spent = time.process_time() - began
        for way in WAYS:
            if way.trained == trained:
                for job, row in zip(jobs(way.name, seed), _tested(made, way, tests), strict=True):
                    own = {"steps": STEPS, "cpu_s": round(spent / len(MANY_TASKS), 1)}
                    results.add(job, row | own | circumstances(1))
                    print(f"{job}: test {row['test_accuracy']:.4f}, {spent:.0f} s of CPU for all")


def _train(trained: str, seed: int, base: Path, rows: dict[str, Sequence[Row]]) -> Any:
    from bishare_dsl.train import train

    method = METHODS[trained]
    with tempfile.TemporaryDirectory() as scratch:
        files = {task: Path(scratch, f"{task}.jsonl") for task in rows}
        for task, file in files.items():
            pairs = ({"prompt": r.prompt, "completion": r.options[r.answer]} for r in rows[task])
            file.write_text("\n".join(map(json.dumps, pairs)))
        torch.set_num_threads(1)
        return train(
            method.spec,
            base,
            files,
            Path(scratch, "out"),
            params=method.params,
            dtype="bfloat16",
            learning_rate=RATE,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=1,
            max_steps=STEPS,
            warmup_steps=STEPS // 8,
            save_strategy="no",
            seed=seed,
            quiet=True,
        )


def _tested(made: Any, way: Way, tests: dict[str, list[Example]]) -> Iterator[dict[str, Any]]:
    handle, names = made.model.bishare, [*tests]
    shared = handle.plan.common if handle.plan.is_library else frozenset()
    for task, examples in tests.items():
        handle.set_adapter([task])
        tensors = handle[task].tensors()
        if way.rank is not None:
            cut(tensors, way.rank)
        right, loss = evaluate(made.model, examples)
        own = sum(t.numel() for name, t in tensors.items() if name not in shared)
        common = sum(tensors[name].numel() for name in shared) / len(names)
        part = 1 if way.rank is None else way.rank / METHODS[way.trained].params.get("r", 8)
        yield {
            "test_accuracy": sum(right) / len(right),
            "test_loss": loss if math.isfinite(loss) else None,
            "test_right": bitmask(right),
            "test_rows": len(right),
            "parameters": round(part * (own + common)),
            "bytes": round(4 * part * (own + common)),
        }


@torch.no_grad()
def cut(tensors: dict[str, torch.Tensor], rank: int) -> None:
    """Give a LoRA the nearest one of a lower rank, with rows of zeros for what it lost.

    The factors of PEFT's `convert_to_lora`, which takes the singular values of the whole product.
    """
    for name in [name for name in tensors if name.endswith(".A")]:
        a, b = tensors[name], tensors[name.removesuffix("A") + "B"]
        (qa, ra), (qb, rb) = torch.linalg.qr(a.T), torch.linalg.qr(b.T)
        u, s, v = torch.linalg.svd(rb @ ra.T)
        s[rank:] = 0
        b.copy_(s.sqrt()[:, None] * (qb @ u).T)
        a.copy_(s.sqrt()[:, None] * (v @ qa.T))
