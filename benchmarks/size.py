"""How large an adapter is on disk, by 4 bytes a trainable parameter; Llama-7B, shapes only.

The published code of Bi-Share writes a shared tensor once for every module that uses it. What that would
come to is counted from the plan.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

from harness import write

from bishare_dsl import plan_spec

BISHARE = str(Path(sys.executable).with_name("bishare"))
MODEL = "llama-7b"
SPECS = ("lora", "bishare_ss", "bishare_gt", "bishare_ke", "bishare_ke_ab", "bishare_ke_rowwise")
GOAL = 1.02


def row(spec: str) -> dict[str, object]:
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "adapter"
        command = [BISHARE, "compile", spec, "--model", MODEL, "--out", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        file = (folder / "adapter.safetensors").stat().st_size
        whole = sum(path.stat().st_size for path in folder.iterdir())
    plan = plan_spec(spec, MODEL)
    # Every module's own copy of all that it uses.
    copies = sum(plan.tensor[name].size for term in plan.terms for name in term.tensors.values())
    return {
        "spec": spec,
        "trainable": plan.trainable,
        "adapter.safetensors": file,
        "by 4 bytes each": round(file / (4 * plan.trainable), 4),
        "goal": f"<= {GOAL}",
        "whole folder": whole,
        "folder by 4 bytes": round(whole / (4 * plan.trainable), 4),
        "a copy per module": round(copies / plan.trainable, 2),
    }


def main() -> None:
    warnings.simplefilter("ignore")
    write("size", [row(spec) for spec in SPECS], model=MODEL, seed=0)


if __name__ == "__main__":
    main()
