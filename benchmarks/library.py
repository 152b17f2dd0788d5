"""A library of 100 adapters against 100 folders: bytes, and the relative error that they cost.

The adapters are made, not trained: 100 trainings would take days here. So there are two sets, the best case
and the null, of LoRA r=8 on q_proj and v_proj of ten layers of SmolLM2-135M:

- *planted*: the rows of every adapter's A and B lie in 24 directions that a module has for all of them, but
  for noise of a tenth of their norm. So Share and EigenLoRAx say that adapters of one base are.
- *independent*: random, with nothing in common. A basis cannot help; what is left is chance.

The spectrum of every adapter decays by 0.7 from row to row. The spec is `Loadings` per module: all
adapters share its vectors.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from harness import write

from bishare_dsl.adapter.files import save_adapter
from bishare_dsl.compiler import make_plan

SOURCE = """spec task
target (q_proj or v_proj) and layer in 0..9
share lora  per module  rank 8
"""
FAMILY = """spec family
target (q_proj or v_proj) and layer in 0..9
share tasks  per module  rank 8  via Loadings(vectors = {vectors})
"""
MODEL, SHARED, NOISE, FALL = "smollm2-135m", 24, 0.1, 0.7
GOAL = 0.4


def directions(name: str, width: int) -> torch.Tensor:
    """Orthonormal rows, which a tensor has in all adapters."""
    random = torch.Generator().manual_seed(sum(map(ord, name)) * 7919 + len(name))
    return torch.linalg.qr(torch.randn(width, SHARED, generator=random)).Q.t()


def made(folder: Path, kind: str, count: int) -> None:
    """Write the folders of adapters."""
    source = make_plan(SOURCE, MODEL)
    plan = source.plan
    shared = {t.name: directions(t.name, t.shape[1]) for t in plan.tensors}
    for number in range(count):
        random = torch.Generator().manual_seed(number)
        tensors = {}
        for tensor in plan.tensors:
            rank, width = tensor.shape
            factor = torch.randn(rank, width, generator=random) / width**0.5
            if kind == "planted":
                planted = torch.randn(rank, SHARED, generator=random) / SHARED**0.5
                factor = planted @ shared[tensor.name] + NOISE * factor
            fall = FALL ** torch.arange(rank)[:, None] if tensor.name.endswith(".B") else 1
            tensors[tensor.name] = factor * fall
        save_adapter(folder / f"task-{number:03}", plan, tensors, source.text(), seed=0)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def row(kind: str, vectors: int, count: int, sweeps: int, root: Path) -> dict[str, object]:
    given, out, spec = root / kind, root / "library", root / "family.share"
    if not given.exists():
        made(given, kind, count)
    spec.write_text(FAMILY.format(vectors=vectors))
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "bishare_dsl.cli.main",
        "fit",
        *sorted(map(str, given.iterdir())),
    ]
    options = ["--spec", spec, "--out", out, "--sweeps", sweeps, "--json", "--quiet"]
    began = time.monotonic()
    done = subprocess.run(
        [*command, *map(str, options)], check=True, capture_output=True, text=True
    )
    seconds = time.monotonic() - began
    found = json.loads(done.stdout)
    errors = found["adapters"].values()
    return {
        "adapters": kind,
        "count": count,
        "vectors": vectors,
        "100 folders MiB" if count == 100 else "folders MiB": round(size(given) / 2**20, 1),
        "library MiB": round(size(out) / 2**20, 1),
        "of the folders": round(size(out) / size(given), 3),
        "goal": f"<= {GOAL}",
        "relative error": round(found["error"], 4),
        "of the worst": round(max(errors), 4),
        "sweeps": found["sweeps"],
        "seconds": round(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--sweeps", type=int, default=8)
    parser.add_argument("--vectors", type=int, nargs="+", default=[32])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with TemporaryDirectory() as scratch:
        rows = [
            row(kind, vectors, arguments.count, arguments.sweeps, Path(scratch))
            for kind in ("planted", "independent")
            for vectors in arguments.vectors
        ]
    write("library", rows, model=MODEL, directions=SHARED, noise=NOISE, fall=FALL)


if __name__ == "__main__":
    main()
