"""Does a proposed topology learn more than others of its size?

On the tasks of `benchmarks/quality`, by its protocol: at 44.59% and at 15% of the parameters of LoRA r=8, the
spec that `bishare propose` makes of a LoRA trained here, against SS, KE and KE `1_r`, LoRA of the rank that
the budget buys, and three topologies drawn at random, which are in specs/ beside this file. Proposals are
written there too, the runs to results.jsonl, one a line: interrupt it as you like.

    python benchmarks/topology/compare.py [--tasks headlines] [--seeds 3] [--parts 45,15] [--methods ss,drawn]
    python benchmarks/topology/compare.py --table
"""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "quality")]

from sweep.methods import METHODS, Method
from sweep.results import Results
from sweep.running import arguments, names, sweep
from sweep.search import finished
from sweep.tables import columns, compared, table

from bishare_dsl import plan_spec
from bishare_dsl.language.format import format_text

MODEL, LORA = "smollm2-135m", 1_658_880
PARTS = {"45": int(0.4459 * LORA), "15": int(0.15 * LORA)}
"""Of the parameters of LoRA r=8."""

SHIPPED: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
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
    """Return a spec of shares whose keys are drawn at random, and which spends nine tenths of the budget."""
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
    """Return what `bishare propose` says of a LoRA that is trained on the task."""
    from fit import trained

    lora = trained(task, 0, cache)
    command = [sys.executable, "-m", "bishare_dsl", "propose", "--model", MODEL, "--quiet"]
    command += ["--budget", str(PARTS[part]), "--from", str(lora)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def methods(task: str, parts: list[str]) -> dict[str, Method]:
    """Return what is compared; the file of a proposal may not be there yet."""
    found = {}
    for part in parts:
        file = HERE / "specs" / f"proposed-{task}-{part}.share"
        found[f"proposed@{part}"] = Method(f"proposed, {part}%", str(file))
        for name, (spec, params) in SHIPPED[part].items():
            found[f"{name}@{part}"] = Method(f"{spec}, {part}%", spec, params)
        for seed in range(DRAWS):
            file = HERE / "specs" / f"drawn-{part}-{seed}.share"
            found[f"drawn{seed}@{part}"] = Method(f"drawn {seed}, {part}%", str(file))
    return found


def report(results: Results, task: str, parts: list[str]) -> str:
    """Return the proposed spec, and every other one beside it, paired."""
    found, lines = finished(results, task), []
    for part in parts:
        runs = {name: rows for name, rows in found.items() if name.endswith(f"@{part}")}
        versus = compared(runs, dict.fromkeys(runs, f"proposed@{part}"))
        lines += [[*columns(name, rows), *versus[name]] for name, rows in runs.items()]
    return table(task, "spec | parameters | lr | test | to the proposed | 95% | p | seeds", lines)


def main() -> None:
    parser = arguments(__doc__, HERE)
    parser.add_argument("--parts", type=names, default=list(PARTS), help="per cent: 45, 15")
    parser.add_argument("--methods", type=names, default=[""], help="how their names begin")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results = Results(options.results)
    prefixes = tuple(options.methods)
    for task in options.tasks:
        found = methods(task, options.parts)
        METHODS.update(found)
        if options.table:
            print(report(results, task, options.parts) + "\n")
            continue
        chosen = [name for name in found if name.startswith(prefixes)]
        for part in options.parts:
            path = Path(found[f"proposed@{part}"].spec)
            if f"proposed@{part}" in chosen and not path.exists():
                path.write_text(proposed(task, part, options.cache))
        options.tasks, options.methods = [task], chosen
        sweep(results, options)


if __name__ == "__main__":
    main()
