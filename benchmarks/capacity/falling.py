"""Why do single seeds fall at high rates, and what helps? See notes/2026-11-27-falling.md.

    falling.py              # the trials that are not in falling.jsonl yet
    falling.py --real [N]   # (N more of) runs of benchmarks/quality with the longer warm-up, minutes each
    falling.py --late       # 20 seeds at one rate on the headlines, in SmolLM2's last blocks; 40 minutes
    falling.py --watch      # how far each share's step moves the outputs, of seeds that fall and of others
    falling.py --rates      # how far a first step moves them, and the best rate, of all that run.py has tuned
    falling.py --tables     # the tables of that page

A trial is 16 or 20 seeds in one pass.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is loaded: a pass has one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import torch
from harness.page import write_below
from storing.bases import BASES, VALUES
from storing.jobs import TUNING, best_rate, density
from storing.methods import methods, spec_of
from storing.store import Load, Recipe, Spec, Stack, share_of, store

FOUND, PAGE = HERE / "falling.jsonl", HERE.parent / "notes" / "2026-11-27-falling.md"
BASE = BASES["random"]
SEEDS = range(16)
RECIPES = {
    "as capacity": Recipe(),
    "warm-up over a quarter": Recipe(warm_up=0.25),
    "a third of the rate for what the model shares": Recipe(factors={"inter": 0.35}),
    "both": Recipe(warm_up=0.25, factors={"inter": 0.35}),
    "each share clipped by itself": Recipe(by_share=True),
    "updates clipped at 0.3": Recipe(largest_update=0.3),
    "AdamW's second beta 0.99": Recipe(betas=(0.9, 0.99)),
}
TRIALS = [
    *(("random", "ke_r_1", 1_040, rate, r) for rate in (0.05, 0.025) for r in list(RECIPES)[:4]),
    *(("random", "ke_r_1", 1_040, 0.05, recipe) for recipe in list(RECIPES)[4:]),
    *(("random", "lora", 4_160, rate, r) for rate in (0.04, 0.0625) for r in list(RECIPES)[:2]),
]
"""Base, method, budget, rate and recipe."""
STEADY = [
    ("random", method, budget, 0.025, "warm-up over a quarter")
    for method, budget in (
        ("lora", 12_480),
        ("ss", 12_480),
        ("gt", 12_480),
        ("ke_r_1", 12_480),
        ("ke_1_r", 4_160),
    )
]
"""The same, of more seeds: one rate, next to the best one of each."""
MANY = range(20)
BEST = {"ke_r_1": 0.025, "lora": 0.04}
"""Rates, as far as they were tried here."""
FALLEN = 0.85
"""Of the best mean at the best rate: a seed with less has fallen."""
REAL = [
    # These diverged at 5e-3 with an eighth of the steps as warm-up.
    *(
        ("headlines", method, 5e-3, seed)
        for method, seed in (
            ("ke_0.7M", 1),
            ("lora", 2),
            ("ke_0.05M", 1),
            ("ss", 1),
            ("lily", 1),
            ("ke_r_1", 7),
        )
    ),
    # The best rates: does the longer warm-up cost anything there?
    ("languages", "lora", 2e-3, 0),
    ("languages", "ke_1_r", 5e-3, 0),
    ("languages", "ss", 2e-3, 4),
    # Runs that ended at chance, and the one of GT that diverged.
    ("languages", "ss", 5e-3, 0),
    ("headlines", "gt", 5e-3, 1),
    # One rate for all.
    *(("languages", method, 3e-3, 0) for method in ("lora", "ss", "ke_1_r", "ke_r_1")),
]
"""Task, method, rate and seed of runs of benchmarks/quality."""
LATE, GRID, SEARCHED = "headlines", (2e-3, 4e-3, 8e-3, 1.6e-2), (100, 101)
"""A task, the rates of which one is chosen for all methods, and the seeds on which it is."""
ALIKE = ("lora", "ss", "gt", "ke_1_r")
"""Methods of benchmarks/quality, at the ranks that they have there."""
GUESSED = 0.5
"""What is right of the headlines by chance."""
LONGER = 0.25
"""Of the steps, the warm-up that is tried on them."""
WATCHED = (0, 2, 4, 6, 8, 11, 14, 18)


def rows() -> list[dict[str, Any]]:
    """Return what was found so far."""
    return list(map(json.loads, FOUND.read_text().splitlines())) if FOUND.exists() else []


def add(row: dict[str, Any]) -> None:
    """Append a trial."""
    with FOUND.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def spec(method: str, budget: int, base: str = "random") -> Spec:
    """Return what a method is at a budget."""
    found = spec_of(base, method, budget)
    assert found is not None
    return found


def tried() -> None:
    """Run the trials that are left."""
    names = ("base", "method", "budget", "rate", "recipe")
    known = {tuple(row[name] for name in names) for row in rows() if "recipe" in row}
    for trial in (*TRIALS, *STEADY):
        if trial not in known:
            base, method, budget, rate, recipe = trial
            load = Load(BASES[base], "one", BASES[base].pairs(budget), BASES[base].steps)
            runs = [(rate, seed) for seed in (MANY if trial in STEADY else SEEDS)]
            stored = store(load, spec(method, budget, base), runs, RECIPES[recipe])
            density = [round((row["bits"] or 0) / row["parameters"], 4) for row in stored]
            told = dict(zip(names, trial, strict=True))
            add({**told, "bits": density, "cpu_s": sum(row["cpu_s"] for row in stored)})


def part_of(name: str) -> str:
    """Return to what part of a share a tensor belongs: its factors, or its kernels."""
    return share_of(name) + (" kernels" if name.rsplit("__", 1)[-1].startswith("K_") else "")


def _size(values: torch.Tensor) -> torch.Tensor:
    """Return each adapter's root mean square."""
    return values.square().mean((1, 2)).sqrt()


def watched(method: str = "ke_r_1", budget: int = 1_040, rate: float = 0.05) -> None:
    """Measure by share how far the first steps move the logits: the root mean square, by step and seed."""
    load = Load(BASE, "one", BASE.pairs(budget), BASE.steps)
    stack = Stack(load, spec(method, budget), [(rate, seed) for seed in SEEDS])
    found: dict[str, list[list[float]]] = defaultdict(list)

    def watch(step: int, batch: torch.Tensor, change: torch.Tensor) -> None:
        if step not in WATCHED:
            return
        before, held = stack.logits(batch), stack.flat.clone()
        for group, mask in stack.groups(part_of).items():
            stack.flat += change * mask
            moved = stack.logits(batch) - before
            stack.flat.copy_(held)
            # The second one is what is common to all keys.
            for kind, part in ((group, moved), (f"{group}, common", moved.mean(1, keepdim=True))):
                found[kind].append([round(float(v), 4) for v in _size(part)])

    stack.train(load.steps, torch.full((len(SEEDS),), rate), watch=watch)
    nats, _ = stack.evaluate()
    whole = load.pairs * torch.tensor(VALUES).log2()
    bits = ((whole - nats / torch.tensor(2.0).log()) / stack.parameters).tolist()
    told = {"watched": method, "budget": budget, "rate": rate, "steps": WATCHED}
    add({**told, "bits": [round(b, 4) for b in bits], "moved": found})


def rates() -> None:
    """Measure how far a first step at a rate of 1 moves the logits; find the best rate of what was run."""
    tuned: dict[tuple[int, str], dict[float, float]] = defaultdict(dict)
    for row in map(json.loads, (HERE / "results.jsonl").read_text().splitlines()):
        if (row["base"], row["task"], row["seed"], row["load"]) == ("random", "one", TUNING, 1):
            tuned[row["budget"], row["method"]][row["rate"]] = density(row)
    for (budget, method), found in tuned.items():
        # A rate says nothing where nothing is stored.
        if max(found.values()) > 0 and method != "gate":
            moved = _moved(method, budget)
            told = {"tuned": method, "budget": budget, "moved": round(moved, 3)}
            add({**told, "best": round(_peak(found), 4)})


def _moved(method: str, budget: int, tiny: float = 1e-3) -> float:
    """Return the root mean square of what AdamW's first step does to the logits, for a rate."""
    stack = Stack(
        Load(BASE, "one", BASE.pairs(budget), BASE.steps),
        spec(method, budget),
        [(1.0, 0), (1.0, 1)],
    )
    batch = torch.arange(stack.keys.shape[1] // BASE.batches).expand(2, -1)
    (gradient,) = torch.autograd.grad(stack.losses(batch, "mean").sum(), stack.flat)
    with torch.no_grad():
        before = stack.logits(batch)
        stack.flat -= tiny * gradient.sign()
        return float(_size(stack.logits(batch) - before).mean()) / tiny


def _peak(found: dict[float, float]) -> float:
    """Return the rate at the top of the parabola through the best rate and its neighbours."""
    tried = sorted(found)
    at = tried.index(best_rate(found))
    if at in (0, len(tried) - 1):
        return tried[at]
    below, middle, above = tried[at - 1 : at + 2]
    a, b, c = found[below], found[middle], found[above]
    # The rates are a constant factor apart.
    return middle * math.sqrt(above / below) ** ((a - c) / 2 / (a - 2 * b + c))


def real(most: int) -> None:
    """Train so many more runs of benchmarks/quality with a longer warm-up."""
    sys.path.append(str(HERE.parent / "quality"))
    from harness.model import smollm2_folder
    from sweep import training
    from sweep.results import Job

    from bishare_dsl.resources import cache_folder

    cache = cache_folder()
    training.WARM_UP = LONGER
    names = ("task", "method", "rate", "seed")
    known = {tuple(row[name] for name in names) for row in rows() if "task" in row}
    for run in [run for run in REAL if run not in known][:most]:
        (row,) = training.run([Job(*run)], smollm2_folder(cache), cache / "wheels")
        kept = ("test_accuracy", "validation_accuracy", "train_loss", "cpu_s")
        told = {"warm_up": LONGER, **{name: row[name] for name in kept}}
        add({**dict(zip(names, run, strict=True)), **told})


def late() -> None:
    """Train on real rows, in the last blocks: all rates on two seeds, then 20 seeds at the common rate."""
    from carrying import run
    from sweep.methods import METHODS

    def train(method: str, runs: list[tuple[float, int]]) -> None:
        how = METHODS[method]
        found = run(LATE, (how.spec, how.params), runs)
        for rate in dict.fromkeys(rate for rate, _ in runs):
            right = [row["test"] for row in found if row["rate"] == rate]
            told = {"late": LATE, "method": method, "rate": rate, "right": right}
            add({**told, "parameters": found[0]["parameters"], "cpu_s": found[0]["cpu_s"]})

    def known(seeds: int) -> set[str]:
        return {row["method"] for row in rows() if "late" in row and len(row["right"]) == seeds}

    for method in ALIKE:
        if method not in known(len(SEARCHED)):
            train(method, [(rate, seed) for rate in GRID for seed in SEARCHED])
    for method in ALIKE:
        if method not in known(len(MANY)):
            train(method, [(common_rate(rows()), seed) for seed in MANY])


def searched(found: list[dict[str, Any]]) -> dict[str, dict[float, float]]:
    """Return by method and rate what part of the rows is right, in the mean of the search."""
    right: dict[str, dict[float, float]] = defaultdict(dict)
    for row in found:
        if "late" in row and len(row["right"]) == len(SEARCHED):
            right[row["method"]][row["rate"]] = statistics.fmean(row["right"])
    return right


def common_rate(found: list[dict[str, Any]]) -> float:
    """Return the rate at which the method that loses most to its own best rate loses least."""
    right = searched(found)
    loss = {rate: max(max(of.values()) - of[rate] for of in right.values()) for rate in GRID}
    return min(loss, key=lambda rate: loss[rate])


def _late_lines(found: list[dict[str, Any]]) -> Iterator[str]:
    right_at = searched(found)
    yield f"Of the {LATE}, in SmolLM2's last three blocks, warm-up over a quarter:"
    yield ""
    rates = " | ".join(f"at {rate:g}" for rate in GRID)
    yield f"| | parameters | {rates} | rate | 20 seeds | the worst | fallen |"
    yield "|---|---:|" + "---:|" * len(GRID) + "---:|---:|---:|---:|"
    for row in found:
        if len(row["right"]) == len(MANY):
            right, tried = row["right"], right_at[row["method"]]
            mean, cells = statistics.fmean(right), [f"{tried[rate]:.1%}" for rate in GRID]
            usual = FALLEN * (max(mean, *tried.values()) - GUESSED) + GUESSED
            fallen = f"{sum(part < usual for part in right)} of {len(right)}"
            spread = f"{mean:.1%} ± {statistics.stdev(right):.1%}"
            name = f"{row['method']} | {row['parameters']:,} | {' | '.join(cells)}"
            yield f"| {name} | {row['rate']:g} | {spread} | {min(right):.1%} | {fallen} |"
    yield ""


def lines() -> Iterator[str]:
    """Yield the tables."""
    found = rows()
    heads = "bits a parameter | the worst seed | below 85% of the best"
    yield f"| base | | parameters | rate | recipe | {heads} |"
    yield "|---|---|---:|---:|---|---:|---:|---:|"
    trials = [row for row in found if "recipe" in row]
    usual: dict[tuple[str, int], float] = defaultdict(float)
    for row in trials:
        if len(row["bits"]) == len(MANY) or row["rate"] == BEST[row["method"]]:
            key = row["method"], row["budget"]
            usual[key] = max(usual[key], statistics.fmean(row["bits"]))
    for row in trials:
        bits, label = row["bits"], methods(row["base"])[row["method"]].label
        fallen = sum(b < FALLEN * usual[row["method"], row["budget"]] for b in bits)
        spread = f"{statistics.fmean(bits):.3f} ± {statistics.stdev(bits):.3f}"
        setting = f"{row['base']} | {label} | {row['budget']:,} | {row['rate']} | {row['recipe']}"
        yield f"| {setting} | {spread} | {min(bits):.3f} | {fallen} of {len(bits)} |"
    yield ""
    for row in found:
        if "watched" in row:
            yield from _watched_lines(row)
    yield from early_lines()
    yield from _rate_lines([row for row in found if "tuned" in row])
    yield from _real_lines([row for row in found if "task" in row])
    if any("late" in row for row in found):
        yield from _late_lines([row for row in found if "late" in row])


def _real_lines(found: list[dict[str, Any]]) -> Iterator[str]:
    yield "| task | method | rate | seed | warm-up over an eighth | over a quarter |"
    yield "|---|---|---:|---:|---:|---:|"
    usual = {
        (row["task"], row["method"], row["rate"], row["seed"]): row["test_accuracy"]
        for row in _quality()
    }
    for row in found:
        run = row["task"], row["method"], row["rate"], row["seed"]
        before = f"{usual[run]:.1%}" if run in usual else "not run"
        yield f"| {' | '.join(map(str, run))} | {before} | {row['test_accuracy']:.1%} |"
    yield ""


def _rate_lines(found: list[dict[str, Any]]) -> Iterator[str]:
    if len(found) > 2:
        best, moved = ([math.log(row[name]) for row in found] for name in ("best", "moved"))
        products = [b + m for b, m in zip(best, moved, strict=True)]
        slope = statistics.linear_regression(moved, best).slope
        yield (
            f"Of {len(found)} topologies and budgets: the best rate goes with the power {slope:.2f} of how"
            f" far a first step at a rate of 1 moves the logits; the best rate's logarithm has a spread of"
            f" {statistics.pstdev(best):.2f}, and that of their product {statistics.pstdev(products):.2f}."
        )
        yield ""


def _quality() -> Iterator[dict[str, Any]]:
    """Yield the runs of benchmarks/quality that are of the usual size and form."""
    file = HERE.parent / "quality" / "results.jsonl"
    for row in map(json.loads, file.read_text().splitlines()):
        if row["size"] == "small" and not row["params"]:
            yield row


def _at_5e_3() -> Iterator[dict[str, Any]]:
    """Yield those on the headlines at a rate of 5e-3."""
    return (row for row in _quality() if row["task"] == "headlines" and row["rate"] == 5e-3)


def early_lines() -> Iterator[str]:
    """Yield how well the loss of the first tenth of the steps tells which methods fall on the headlines."""
    accuracy: dict[int, dict[str, tuple[float, float]]] = defaultdict(dict)
    for row in _at_5e_3():
        # VeRA and VB-LoRA train at rates ten times as high.
        if not row["method"].startswith("peft_v"):
            accuracy[row["seed"]][row["method"]] = row["train_loss"][0], row["test_accuracy"]
    heads = "right on less than 72% | first losses, of these and of the others"
    yield f"| seed | methods | {heads} | correlation with what is right |"
    yield "|---:|---:|---|---|---:|"
    for seed, found in sorted(accuracy.items()):
        if len(found) >= 10:
            fell = {name: loss for name, (loss, right) in found.items() if right < 0.72}
            others = [loss for name, (loss, _) in found.items() if name not in fell]
            means = f"{statistics.fmean(fell.values()):.2f}, {statistics.fmean(others):.2f}"
            correlation = statistics.correlation(*zip(*found.values(), strict=True))
            names = ", ".join(sorted(fell))
            yield f"| {seed} | {len(found)} | {names} | {means} | {correlation:+.2f} |"
    yield ""


def _watched_lines(row: dict[str, Any]) -> Iterator[str]:
    order = sorted(range(len(row["bits"])), key=lambda i: row["bits"][i])
    groups = {"worst": order[:4], "best": order[-4:]}
    # Of what is common to all keys the tier that moves most is enough.
    shown = {n: m for n, m in row["moved"].items() if "common" not in n or n == "inter, common"}
    yield "How far the step of a part alone moves the logits, in the four worst and the four best seeds:"
    yield ""
    yield "| step | " + " | ".join(f"{name}, {group}" for name in shown for group in groups) + " |"
    yield "|---:|" + "---:|" * len(groups) * len(shown)
    for number, step in enumerate(row["steps"]):
        cells = [
            f"{statistics.fmean(of[number][i] for i in group):.2f}"
            for of in shown.values()
            for group in groups.values()
        ]
        yield f"| {step} | " + " | ".join(cells) + " |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=int, nargs="?", const=len(REAL), default=0, metavar="N")
    for name in ("late", "watch", "rates", "tables"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.tables:
        write_below(PAGE, "falling.py", lines())
    elif options.real:
        real(options.real)
    elif options.late:
        late()
    elif options.rates:
        rates()
    elif options.watch:
        watched()
    else:
        tried()


if __name__ == "__main__":
    main()
