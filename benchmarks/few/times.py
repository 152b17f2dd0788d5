"""Time how long new tasks of a library take to start from its members, after the model is loaded.

    times.py                     # 8 examples among 64 members, 100 customers among 64, 8 examples among 1,000
    times.py --cores 1 --rounds 1

Run it on an idle machine. It prints medians over rounds in which the rows alternate with a control, a fixed
product of matrices. A row has no more rounds once it has taken two minutes, and is stopped after that time.
The library is not trained: only the time matters.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

import torch
from harness.model import smollm2_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from bishare_dsl import compile_spec
from bishare_dsl.folder.card import STARTS
from bishare_dsl.folder.files import save_library
from bishare_dsl.resources import cache_folder
from bishare_dsl.train import train
from bishare_dsl.train.many.start import Record

GOALS = {(64, 1): 1.0, (64, 100): 20.0, (1000, 1): 10.0}
"""Seconds on two cores, by the number of members and of new customers with eight examples each."""
MOST = 120
"""Seconds for all rounds of a row."""
WORDS = [" cheap", " fair", " dear", " fair"] * 2


def write_library(folder: Path, handle: Any, members: int) -> None:
    """Write a library of members with random cores."""
    draw, shared = torch.Generator().manual_seed(members), handle.tensors()
    own = [name for name in shared if name not in handle.plan.common]
    drawn = {
        f"m{i}": {**shared, **{n: torch.randn(shared[n].shape, generator=draw) / 20 for n in own}}
        for i in range(members)
    }
    save_library(folder, handle.plan, drawn, handle.spec_text, seed=0)
    (folder / STARTS).write_text(Record(sharpness=1.0).model_dump_json())


def write_customers(folder: Path, customers: int) -> dict[str, str]:
    """Write eight examples of each customer; return the files by name."""
    data = {}
    for i in range(customers):
        rows = [
            {"prompt": f"{(97 * k + 13 * i) % 1000} is", "completion": word, "options": WORDS[:3]}
            for k, word in enumerate(WORDS)
        ]
        path = folder / f"c{i}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        data[f"c{i}"] = str(path)
    return data


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside the block when it takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def control() -> None:
    """Multiply matrices: 58 billion operations."""
    x, weight = torch.ones(1024, 576), torch.ones(1536, 576)
    for _ in range(32):
        torch.nn.functional.linear(x, weight)


def taken(act: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds, and those of the processor, that a function takes."""
    began, cpu = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - began, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--start", default="mixture", help="zero or mixture")
    options = parser.parse_args()
    torch.set_num_threads(options.cores)
    base = smollm2_folder(cache_folder())
    how: dict[str, Any] = {"start": options.start, "quiet": True, "max_steps": 0}
    how["tokenizer"] = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    times: dict[Any, list[tuple[float, float]]] = {case: [] for case in (*GOALS, "control")}
    stopped = set[Any]()
    with TemporaryDirectory() as place:
        folder = Path(place)
        handle = compile_spec("library_core", model).bishare
        for members in {members for members, _ in GOALS}:
            write_library(folder / f"library{members}", handle, members)
        handle.unload()
        for round in range(options.rounds):
            times["control"].append(taken(control))
            for members, customers in GOALS:
                found = times[members, customers]
                left = MOST - sum(seconds for seconds, _ in found)
                if left < found[0][0] if found else (members, customers) in stopped:
                    continue
                data = write_customers(folder, customers)
                library, out = (
                    folder / f"library{members}",
                    folder / f"{members}-{customers}-{round}",
                )
                act = partial(train, None, model, data, out, library=str(library), **how)
                try:
                    with stopped_after(left):
                        found.append(taken(act))
                except TimeoutError:
                    stopped.add((members, customers))
                finally:
                    if hasattr(model, "bishare"):
                        model.bishare.unload()
    print(
        f"{machine()}, torch {torch.__version__}, {options.cores} threads, --start {options.start}"
    )
    print("| | seconds, median | smallest to largest | goal | of the processor | rounds |")
    print("|---|---:|---:|---:|---:|---:|")
    for case, found in times.items():
        name = case if case == "control" else f"{case[0]:,} members, {case[1]} new"
        if not found:
            print(f"| {name} | over {MOST} | | {GOALS[case]:g} | | 0 |")
            continue
        wall, cpu = zip(*found, strict=True)
        line = f"| {name} | {median(wall):.2f} | {min(wall):.2f} to {max(wall):.2f} | "
        print(line + f"{GOALS.get(case, '')} | {median(cpu):.2f} | {len(found)} |")


def machine() -> str:
    """Name the processor and the load of the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return f"{name or platform.processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
