"""Write experiments.toml as experiments of PEFT's MetaMathQA benchmark, and print the files of their results.

python experiments.py BENCHMARK [--first]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bishare_dsl.peft import BishareConfig

HERE = Path(__file__).parent
METHOD = "bishare"
"""The folder of PEFT's `experiments` that has ours."""

FILES = ("adapter_config.json", "training_params.json")
"""The files of an experiment."""


@dataclass(frozen=True)
class Experiment:
    """One run: a spec, a learning rate and a seed.

    Attributes:
        name: of the spec, as in the table.
        spec: the file of a spec beside this one, or the name of a shipped spec.
        params: values of its params.
        learning_rate: of AdamW.
        seed: of the adapter's initial values, and the `seed` of PEFT's benchmark.
    """

    name: str
    spec: str
    learning_rate: float
    seed: int
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.name}-lr{self.learning_rate:g}-seed{self.seed}"

    @property
    def result(self) -> str:
        """The path of its result in PEFT's benchmark, as PEFT's Makefile forms it."""
        return f"results/{METHOD}--{self.folder}.json"

    @property
    def config(self) -> BishareConfig:
        """The adapter. Its seed gives the initial values: PEFT's run.py resets torch's seed to 0."""
        file = HERE / self.spec
        spec = file if file.is_file() else self.spec
        return BishareConfig(spec=spec, params=dict(self.params), seed=self.seed)

    @property
    def training_params(self) -> dict[str, Any]:
        """What differs from PEFT's default_training_params.json."""
        optimizer = {"lr": self.learning_rate, "weight_decay": 0.1}
        return {"seed": self.seed, "optimizer_kwargs": optimizer}


@dataclass(frozen=True)
class Result:
    """Which experiment a file of results belongs to.

    Attributes:
        name: of the spec.
        learning_rate: as in the name of the file.
        seed: of the run.
    """

    name: str
    learning_rate: float
    seed: int

    @classmethod
    def of_file(cls, file: Path) -> Result | None:
        """Read the name of a file; None if it is not a result of ours."""
        match = re.fullmatch(rf"{METHOD}--(.+)-lr([\d.e-]+)-seed(\d+)\.json", file.name)
        if match is None:
            return None
        return cls(match[1], float(match[2]), int(match[3]))


def experiments(*, first: bool = False) -> list[Experiment]:
    """Return the experiments of experiments.toml, seed by seed, or those of the first cut."""
    written = tomllib.loads((HERE / "experiments.toml").read_text(encoding="utf-8"))
    specs: Mapping[str, Mapping[str, Any]] = written["specs"]
    names: Sequence[str] = written["first"]["specs"] if first else list(specs)
    rates: Sequence[float] = (written["first"] if first else written)["learning_rates"]
    runs: list[Experiment] = []
    for seed in written["seeds"]:
        for rate in rates:
            runs += [
                Experiment(name=name, learning_rate=rate, seed=seed, **specs[name])
                for name in names
            ]
    return runs


def write(benchmark: Path, runs: Sequence[Experiment]) -> None:
    """Write the folders of experiments, and leave those alone that have not changed.

    PEFT's Makefile runs an experiment again if its files are newer than its result.

    Args:
        benchmark: the folder `method_comparison/MetaMathQA` of a checkout of PEFT.
        runs: the experiments.
    """
    with tempfile.TemporaryDirectory() as temporary:
        for run in runs:
            new = Path(temporary) / run.folder
            run.config.save_pretrained(new)
            params = json.dumps(run.training_params, indent=2) + "\n"
            (new / "training_params.json").write_text(params, encoding="utf-8")
            folder = benchmark / "experiments" / METHOD / run.folder
            folder.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                if not _equal(new / name, folder / name):
                    shutil.copyfile(new / name, folder / name)


def _equal(one: Path, other: Path) -> bool:
    """Return whether another file exists and has the same content."""
    return other.exists() and one.read_bytes() == other.read_bytes()


def main() -> None:
    """Write the experiments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", type=Path, help="PEFT's method_comparison/MetaMathQA")
    parser.add_argument("--first", action="store_true", help="only the first cut")
    given = parser.parse_args()
    runs = experiments(first=given.first)
    write(given.benchmark, runs)
    print(*(run.result for run in runs), sep="\n")


if __name__ == "__main__":
    main()
