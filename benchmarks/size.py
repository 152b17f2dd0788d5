"""Compare the size of an adapter's folder with 4 bytes per trainable parameter, from shapes alone.

The published code of Bi-Share writes a shared tensor once for every module that uses it. The plan shows the
resulting size.
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
SPECS = ("lora", "bishare_ss", "bishare_gt", "bishare_ke")
ROWS = [
    *(("llama-7b", spec, {}, dtype) for spec in SPECS for dtype in ("float32", "bfloat16")),
    ("smollm2-135m", "bishare_ke", {"size": 64}, "float32"),
    ("smollm2-135m", "bishare_ke", {"size": 64}, "bfloat16"),
]
GOALS = {"llama-7b": 1.03, "smollm2-135m": 1.1}


def row(model: str, spec: str, params: dict[str, int], dtype: str) -> dict[str, object]:
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "adapter"
        command = [
            BISHARE,
            "compile",
            spec,
            f"--model={model}",
            f"--out={folder}",
            f"--dtype={dtype}",
        ]
        command += [f"--set={name}={value}" for name, value in params.items()]
        subprocess.run(command, check=True, capture_output=True)
        size = {path.name: path.stat().st_size for path in folder.iterdir()}
    plan = plan_spec(spec, model, params)
    whole = sum(size.values())
    # Every module's own copy of all that it uses.
    copies = sum(plan.tensor[name].size for term in plan.terms for name in term.tensors.values())
    return {
        "model": model,
        "spec": " ".join([spec, *(f"{name}={value}" for name, value in params.items())]),
        "dtype": dtype,
        "trainable": plan.trainable,
        "adapter_model.safetensors": size["adapter_model.safetensors"],
        "whole folder": whole,
        "folder by 4 bytes": round(whole / (4 * plan.trainable), 4),
        "goal": f"<= {GOALS[model]}" if dtype == "float32" else "",
        "a copy per module": round(copies / plan.trainable, 2),
    }


def main() -> None:
    warnings.simplefilter("ignore")
    write("size", [row(*arguments) for arguments in ROWS], seed=0)


if __name__ == "__main__":
    main()
