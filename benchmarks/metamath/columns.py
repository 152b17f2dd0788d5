"""The columns of PEFT's comparison that need no weights: parameters, and the size of the saved file.

PEFT's methods are created on the meta device. Their file size is that of the safetensors header plus the
tensors, which tests/benchmarks/metamath compares with real files of a small model. bishare's adapters are
written to disk.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from comparison.methods import adapt, experiments, parameters, peft_file, spec_of
from harness import write

from bishare_dsl import plan_spec
from bishare_dsl.models.load import meta_model

MODEL = "llama-3.2-3b"
# As PEFT's page had them in July 2026: GSM8K accuracy in per cent, MiB of the file.
LISTED = {
    "lora/rank32": (47.8, 35.0),
    "lora/rank10-mlp": (49.4, 36.1),
    "miss/default": (48.7, 28.0),
    "randlora/default": (47.8, 2109.0),
    "vera/default": (35.4, 6.5),
    "lily/rank140-mlp": (52.6, 796.4),
}


def row(name: str, experiment: dict[str, Any]) -> dict[str, Any]:
    if "spec" in experiment:
        plan = plan_spec(spec_of(experiment), MODEL, params=experiment.get("params", {}))
        trained, size = plan.trainable, written(experiment)
    else:
        model = adapt(experiment, meta_model(MODEL), seed=0)
        trained, size = parameters(model)[0], peft_file(model)
    accuracy, listed = LISTED.get(name, ("", ""))
    return {
        "experiment": name,
        "trainable": trained,
        "file bytes": size,
        "MiB": round(size / 2**20, 1),
        "x 4 bytes a parameter": round(size / 4 / trained, 3),
        "MiB listed by PEFT": listed,
        "GSM8K listed, %": accuracy,
    }


def written(experiment: dict[str, Any]) -> int:
    """The bytes of an adapter that bishare writes with nothing but the model's shapes."""
    sets = [f"--set={name}={value}" for name, value in experiment.get("params", {}).items()]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "adapter"
        command = [sys.executable, "-m", "bishare_dsl", "compile", spec_of(experiment)]
        command += ["--model", MODEL, "--out", str(out), *sets]
        subprocess.run(command, check=True, capture_output=True)
        return (out / "adapter_model.safetensors").stat().st_size


def main() -> None:
    warnings.simplefilter("ignore")
    write("metamath-columns", [row(*item) for item in experiments().items()], model=MODEL)


if __name__ == "__main__":
    main()
