"""Fitting a trained LoRA r=8 to each spec, against its truncation to the rank of equal bytes.

The task, the recipe and the seeds are those of `benchmarks/quality`. What is kept is the accuracy on the test
part, as part of what the LoRA gains over the base. Truncation is the singular value decomposition of each
module's update, which is what PEFT's `convert_to_lora` does.

    python benchmarks/topology/fit.py --seed 0
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
sys.path[:0] = [str(HERE), str(HERE / "quality")]

import torch  # noqa: E402
from harness import write  # noqa: E402
from sweep.results import Job  # noqa: E402
from sweep.training import BATCH, evaluate, load, load_base, prepare  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from bishare_dsl import load_adapter  # noqa: E402
from bishare_dsl.adapter.files import read_adapter, save_adapter  # noqa: E402
from bishare_dsl.compiler import make_plan  # noqa: E402
from bishare_dsl.export.export import export_adapter  # noqa: E402
from bishare_dsl.fit.fit import fit  # noqa: E402
from bishare_dsl.fit.pairs import open_pairs  # noqa: E402
from bishare_dsl.testing.fetch import smollm2_folder  # noqa: E402

SPECS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA r=4": ("lora", {"r": 4}),
    "SS {2,2,32}": ("bishare_ss", {"r_intra": 2}),
    "KE r_1 {2,4,16} size 64": ("bishare_ke", {"size": 64}),
    "KE 1_r {2,4,16} size 64": ("bishare_ke_ab", {"size": 64}),
}
RANKS = (4, 2)
"""Of truncations: half and a quarter of the bytes."""


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def accuracy(adapter: Path | None, base: Path, test: Any) -> float:
    model = load_base(base)
    if adapter is not None:
        load_adapter(adapter, model)
    right, _ = evaluate(model.eval(), test)
    return sum(right) / len(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="headlines")
    parser.add_argument("--size", default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="fewer than the task has, to try the benchmark")
    parser.add_argument("--rows", type=int, help="of the test part, likewise")
    cache = Path(os.environ.get("BISHARE_CACHE") or "~/.cache/bishare").expanduser()
    parser.add_argument("--cache", type=Path, default=cache)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    base = smollm2_folder(options.cache)
    task = load(
        options.task, options.size, AutoTokenizer.from_pretrained(base), options.cache / "wheels"
    )
    steps = options.steps or task.steps or -(-len(task.parts["train"]) // BATCH)
    test = task.parts["test"]
    test.items = test.items[: options.rows]
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        job = Job(options.task, "lora", 2e-3, options.seed, options.size)
        trainer = prepare(job, base, replace(task, steps=steps), steps, output_dir=str(root / "t"))
        trainer.train()
        trainer.model.bishare.save_pretrained(root / "lora")
        folders: dict[str, tuple[Path | None, float, float]] = {
            "base": (None, 1.0, 0.0),
            "LoRA r=8, trained": (root / "lora", 0.0, 0.0),
        }
        stored = read_adapter(root / "lora")
        for rank in RANKS:
            began = time.monotonic()
            out = root / f"truncated-{rank}"
            done = export_adapter(out, stored.plan, stored.tensors(), trainer.model, rank=rank)
            folders[f"truncated to r={rank}"] = (
                out,
                done.total_error or 0.0,
                time.monotonic() - began,
            )
        for label, (spec, params) in SPECS.items():
            began = time.monotonic()
            made = make_plan(spec, stored.plan.base, params)
            with open_pairs([("lora", stored)]) as found:
                family, values, report = fit(made.plan, found)
            out = root / f"fitted-{spec}"
            save_adapter(out, made.plan, family.tensors(values, "lora"), made.text(), seed=0)
            folders[f"fitted to {label}"] = out, report.error, time.monotonic() - began
        rows = []
        for label, (folder, error, seconds) in folders.items():
            rows.append(
                {
                    "adapter": label,
                    "of the bytes": round(size(folder) / size(root / "lora"), 3) if folder else 0,
                    "relative error": round(error, 4),
                    "seconds": round(seconds, 1),
                    "test accuracy": accuracy(folder, base, test),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    start, gained = (row["test accuracy"] for row in rows[:2])
    for row in rows:
        row["of the gain"] = round((row["test accuracy"] - start) / ((gained - start) or 1), 3)
    write("topology-fit", rows, task=options.task, seed=options.seed, steps=steps, rows_=len(test))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
