"""Time how long new tasks of a library take to start from its members, after the model is loaded.

    times.py            # 8 examples among 64 members, 100 customers among 64, 8 examples among 1,000
    times.py --cores 2

Run it on an idle machine. The library is not trained: only the time matters.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

import torch
from harness.model import smollm2_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from bishare_dsl import compile_spec
from bishare_dsl.adapter.files import save_library
from bishare_dsl.resources import cache_folder
from bishare_dsl.train import train
from bishare_dsl.train.start import RECORD, Record

CASES = ((64, 1), (64, 100), (1000, 1))
"""Members, and new customers with eight examples each."""
GOALS = {(64, 1): 1, (64, 100): 20, (1000, 1): 10}
"""Seconds on two cores."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--start", default="mixture", help="zero, mean, nearest, mixture or auto")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.cores)
    torch.set_num_threads(options.cores)
    base = smollm2_folder(cache_folder())
    tokenizer = AutoTokenizer.from_pretrained(base)

    def model() -> Any:
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()

    with TemporaryDirectory() as place:
        folder = Path(place)
        handle = compile_spec("library_core", model()).bishare
        for members, customers in CASES:
            draw, shared = torch.Generator().manual_seed(members), handle.tensors()
            own = [name for name in shared if name not in handle.plan.common]
            drawn = {
                f"m{i}": {
                    **shared,
                    **{n: torch.randn(shared[n].shape, generator=draw) / 20 for n in own},
                }
                for i in range(members)
            }
            library = folder / f"library{members}"
            if not library.exists():
                save_library(library, handle.plan, drawn, handle.spec_text, seed=0)
                (library / RECORD).write_text(Record(sharpness=1.0).model_dump_json())
            data = {}
            for i in range(customers):
                rows = [
                    {"prompt": f"{(97 * k + 13 * i) % 1000} is", "completion": word}
                    | {"options": [" cheap", " fair", " dear"]}
                    for k, word in enumerate([" cheap", " fair", " dear", " fair"] * 2)
                ]
                path = folder / f"c{i}.jsonl"
                path.write_text("\n".join(map(json.dumps, rows)))
                data[f"c{i}"] = str(path)
            loaded = model()
            began, cpu = time.perf_counter(), time.process_time()
            how: dict[str, Any] = {"start": options.start, "quiet": True, "tokenizer": tokenizer}
            out = folder / f"out{members}-{customers}"
            train(None, loaded, data, out, library=str(library), max_steps=0, **how)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            text = f"{members} members, {customers} customers: {seconds:.2f} s"
            goal = GOALS[members, customers]
            print(f"{text} (goal {goal}), {cpu:.2f} s of the processor", flush=True)


if __name__ == "__main__":
    main()
