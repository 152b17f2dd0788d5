"""Fitting a trained LoRA r=8 to each spec, against PEFT's conversion to a rank of equal bytes.

The task, the recipe and the seeds are those of `benchmarks/quality`. What is kept is the accuracy on the test
part, as part of what the LoRA gains over the base. PEFT's `save_as_lora` is a singular value decomposition of
each module's update.

    python benchmarks/topology/fit.py --seed 0
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
sys.path[:0] = [str(HERE), str(HERE / "quality")]

import torch
from harness import write
from harness.model import smollm2_folder
from peft import PeftModel, save_as_lora
from safetensors.torch import load_file
from sweep.results import Job
from sweep.tasks import TASKS
from sweep.training import adapted, evaluate, load, load_base, train

from bishare_dsl import load_adapter
from bishare_dsl.adapter.files import read_adapter, save_adapter
from bishare_dsl.compiler import make_plan
from bishare_dsl.export.export import export_adapter
from bishare_dsl.fit.fit import fit
from bishare_dsl.fit.pairs import open_pairs
from bishare_dsl.resources import cache_folder

SPECS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA r=4": ("lora", {"r": 4}),
    "SS {2,2,32}": ("bishare_ss", {"r_intra": 2}),
    "KE r_1 {2,4,16} size 64": ("bishare_ke", {"size": 64}),
    "KE 1_r {2,4,16} size 64": ("bishare_ke_ab", {"size": 64}),
}
RANKS = (4, 2)
"""Of conversions: half and a quarter of the bytes."""


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def updates(folder: Path) -> dict[str, torch.Tensor]:
    """Of a folder of PEFT, the update of each module."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    modules = {name.partition(".lora_")[0] for name in tensors}
    factor = lambda name, side: tensors[f"{name}.lora_{side}.weight"].float()  # noqa: E731
    scale = config["lora_alpha"] / config["r"]
    return {name: scale * factor(name, "B") @ factor(name, "A") for name in modules}


def relative(whole: Path, part: Path) -> float:
    """The norm of the difference of two LoRAs by that of the first."""
    mine, theirs = updates(whole), updates(part)
    lost = sum(float((mine[name] - theirs[name]).square().sum()) for name in mine)
    return math.sqrt(lost / sum(float(update.square().sum()) for update in mine.values()))


def accuracy(adapter: Path | None, base: Path, test: Any) -> float:
    model = load_base(base)
    if adapter is not None:
        load_adapter(adapter, model)
    right, _ = evaluate(model.eval(), test)
    return sum(right) / len(right)


def trained(task: str, seed: int, cache: Path, steps: int | None = None) -> Path:
    """Train LoRA r=8 as `benchmarks/quality` does, unless it is in the cache; return its folder."""
    steps = steps or TASKS[task].small.steps
    out = cache / "topology" / f"lora-{task}-{steps}-{seed}"
    if not out.exists():
        job, base = Job(task, "lora", 2e-3, seed), smollm2_folder(cache)
        model = adapted(job, base)
        train(model, job, load(task, "small", base, cache / "wheels")["train"], steps)
        model.bishare.save_pretrained(out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="headlines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="fewer than the task has, to try the benchmark")
    parser.add_argument("--rows", type=int, help="of the test part, likewise")
    parser.add_argument("--cache", type=Path, default=cache_folder())
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    base = smollm2_folder(options.cache)
    test = load(options.task, "small", base, options.cache / "wheels")["test"][: options.rows]
    lora = trained(options.task, options.seed, options.cache, options.steps)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folders: dict[str, tuple[Path | None, float, float]] = {
            "base": (None, 1.0, 0.0),
            "LoRA r=8, trained": (lora, 0.0, 0.0),
        }
        stored = read_adapter(lora)
        export_adapter(root / "peft", stored.plan, stored.tensors(), load_base(base))
        converted = PeftModel.from_pretrained(load_base(base), root / "peft")
        for rank in RANKS:
            began = time.monotonic()
            out = root / f"converted-{rank}"
            save_as_lora(out, converted, rank=rank)
            seconds = time.monotonic() - began
            folders[f"PEFT's conversion to r={rank}"] = out, relative(root / "peft", out), seconds
        del converted
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
                    "of the bytes": round(size(folder) / size(lora), 3) if folder else 0,
                    "relative error": round(error, 4),
                    "seconds": round(seconds, 1),
                    "test accuracy": accuracy(folder, base, test),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    start, gained = (row["test accuracy"] for row in rows[:2])
    for row in rows:
        row["of the gain"] = round((row["test accuracy"] - start) / ((gained - start) or 1), 3)
    name = f"topology-fit-{options.task}-{options.seed}"
    steps = options.steps or TASKS[options.task].small.steps
    write(name, rows, task=options.task, seed=options.seed, steps=steps, test_rows=len(test))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
