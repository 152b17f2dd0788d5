"""How many bits of random pairs does a parameter store, by topology? See notes/2026-11-27-capacity.md

    run.py [--bases random,smollm2] [--tasks one,two] [--methods M,…] [--budgets 0,1,2] [--part I/N]
    run.py --tables | --dry-run

Interrupt it as you like: a run is in the results file when it is over, and is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path

# Before torch is loaded: a pass has one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
PAGE = HERE.parent / "notes" / "2026-11-27-capacity.md"
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from harness.page import write_below
from storing.bases import BASES
from storing.jobs import Cell, Job, Pass, cells, finished, passes
from storing.methods import methods, spec_of
from storing.store import Recipe, store
from storing.tables import law_lines, table


class Stored(dict[Job, dict[str, object]]):
    """The rows of a file by their job; a line that a kill cut short does not count."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.read()

    def read(self) -> None:
        """Read what there is, what other processes have added too."""
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            self[Job(**{name: row[name] for name in Job.__dataclass_fields__})] = row

    def add(self, job: Job, measured: dict[str, object]) -> None:
        """Append a run, in one write."""
        self[job] = {**asdict(job), **measured}
        with self.path.open("a") as file:
            file.write(json.dumps(self[job]) + "\n")


def run(jobs: Pass) -> list[dict[str, object]]:
    """Run a pass."""
    first = jobs[0]
    cell = Cell(first.base, first.task, first.budget, first.load, first.longer)
    spec = spec_of(first.base, first.method, first.budget)
    assert spec is not None
    recipe = Recipe(warm_up=BASES[first.base].warm_up)
    return store(cell.work(), spec, [(job.rate, job.seed) for job in jobs], recipe)


def work(results: Stored, options: argparse.Namespace) -> None:
    """Do all runs that are this process's: those of every so manieth method."""
    place, count = options.part
    failed = set[Job]()
    while True:
        results.read()
        for jobs in passes(results, wanted(options), options.methods):
            number = list(methods(jobs[0].base)).index(jobs[0].method)
            if number % count == place and jobs[0] not in failed:
                break
        else:
            return
        try:
            rows = run(jobs)
        except Exception:  # noqa: BLE001 - the others are run all the same.
            failed.add(jobs[0])
            print(f"FAILED {jobs[0]}", flush=True)
            traceback.print_exc()
            continue
        for job, row in zip(jobs, rows, strict=True):
            results.add(job, row)
        told = ", ".join(f"{job.rate:g}: {results[job]['right']:.3f}" for job in jobs)
        print(
            f"{jobs[0].base} {jobs[0].task} {jobs[0].budget} x{jobs[0].load} {jobs[0].method}: {told}",
            flush=True,
        )


def wanted(options: argparse.Namespace) -> list[Cell]:
    """Return the requested cells."""
    return [
        cell
        for cell in cells(options.bases, options.tasks)
        if BASES[cell.base].budgets.index(cell.budget) in options.budgets
        and cell.load in options.loads
        and cell.longer in options.longer
    ]


def write_tables(results: Stored) -> None:
    """Write the tables of all cells, and the law, below the mark of the page."""
    lines = [*law_lines(results)]
    for cell in cells(list(BASES), ["one", "two"]):
        if finished(results, cell, list(methods(cell.base))):
            lines += table(results, cell)
    print(write_below(PAGE, "run.py", lines))


def names(text: str) -> list[str]:
    """Return names with commas between them."""
    return text.split(",")


def numbers(text: str) -> list[int]:
    """Return whole numbers with commas between them."""
    return list(map(int, text.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", type=names, default=list(BASES))
    parser.add_argument("--tasks", type=names, default=["one", "two"])
    parser.add_argument("--methods", type=names, default=list(methods("random")))
    parser.add_argument("--loads", type=numbers, default=[1, 2], help="of the budget's pairs")
    parser.add_argument("--longer", type=numbers, default=[1, 2], help="of the usual steps")
    parser.add_argument(
        "--budgets",
        type=numbers,
        default=[0, 1, 2],
        help="0 is LoRA r=1 on all, 1 a quarter of it, 2 three times it",
    )
    parser.add_argument(
        "--part",
        type=lambda text: tuple(map(int, text.split("/"))),
        default=(0, 1),
        metavar="I/N",
        help="only every Nth method, from I; one process for each I runs beside the others",
    )
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument(
        "--tables", action="store_true", help="only write and print the tables of the page"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what can run now")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results = Stored(options.results)
    if options.tables:
        write_tables(results)
    elif options.dry_run:
        for jobs in passes(results, wanted(options), options.methods):
            print(*(f"{job.rate:g}/{job.seed}" for job in jobs), jobs[0])
    else:
        work(results, options)


if __name__ == "__main__":
    main()
