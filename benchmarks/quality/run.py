"""The quality of bishare's specs and of PEFT's methods on real tasks; see README.md beside this file.

    run.py [--tasks T,…] [--methods M,…] [--seeds N] [--size small|full] [--workers N]
    run.py --method ss --set slice=leading      one ablation, at the learning rate of the method
    run.py --ablations | --front | --many
    run.py --tables | --dry-run

Interrupt it as you like: a run is in the results file when it is over, and is not done again.
"""

from __future__ import annotations

import argparse
import fcntl
import multiprocessing as mp
import os
import platform
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

# Before torch and the tokeniser are loaded: a run has one thread, and runs are forked off this process.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from sweep.methods import ABLATIONS, FRONT, MAIN, METHODS, counts
from sweep.results import Job, Results
from sweep.search import chosen, open_jobs
from sweep.tasks import MANY_TASKS, TASKS

HERE = Path(__file__).parent
PACKAGES = ("bishare", "torch", "transformers", "peft")
DECIDING = ("headlines", "social_iqa", "languages")
MANY_METHODS = {"lora": 2e-3, "ke_1_r": 5e-3}
"""Of many tasks, each at the rate that it was given on the headlines."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    listed = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--tasks", type=listed, help=f"{','.join(DECIDING)}; of {', '.join(TASKS)}")
    parser.add_argument(
        "--methods", "--method", type=listed, default=list(MAIN), help=", ".join(METHODS)
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--size", choices=["small", "full"], default="small")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, of a thread each")
    parser.add_argument(
        "--set",
        dest="sets",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="another value for a param of the spec; repeat it for more; at the rate found without it",
    )
    parser.add_argument("--ablations", action="store_true", help="all of the paper's that fit")
    parser.add_argument("--front", action="store_true", help="accuracy against parameters")
    parser.add_argument("--many", action="store_true", help="many small tasks on one base")
    parser.add_argument("--dry-run", action="store_true", help="only say what there is to do")
    parser.add_argument("--tables", action="store_true", help="only write tables and plot again")
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(os.environ.get("BISHARE_CACHE") or "~/.cache/bishare").expanduser(),
    )
    parser.add_argument("--wheels", type=Path, help="of the data; CACHE/wheels by default")
    options = parser.parse_args()
    options.tasks = options.tasks or list(("headlines",) if options.front else DECIDING)
    if options.front:
        options.methods = [name for names in FRONT.values() for name in names]
    for given, known in ((options.tasks, TASKS), (options.methods, METHODS)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if options.sets and len(options.methods) != 1:
        parser.error("--set needs one --method")
    options.wheels = options.wheels or options.cache / "wheels"
    return options


def value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


class Plan:
    """What there is to do, in order; what can start now depends on what is done."""

    def __init__(self, results: Results, options: argparse.Namespace) -> None:
        self.results = results
        self.options = options
        self.failed: set[str] = set()
        if options.ablations:
            self.variants = [v for group in ABLATIONS.values() for v in group]
        else:
            sets = dict(pair.split("=", 1) for pair in options.sets)
            params = {name: value(text) for name, text in sets.items()}
            self.variants = [(options.methods[0], params)] if params else []

    def _chains(self) -> Iterator[tuple[list[Job], int]]:
        """Each chain's jobs that can start now, and about how many are left of it."""
        options, size = self.options, self.options.size
        if options.many:
            for task in MANY_TASKS:
                yield self._open(
                    Job(task, "base", 0.0, 0, "many"),
                    *(Job(task, method, rate, 0, "many") for method, rate in MANY_METHODS.items()),
                )
            return
        for task in options.tasks:
            if self.variants:
                for method, params in self.variants:
                    if rate := chosen(self.results, task, method, size):
                        job = Job(task, method, rate, 0, size, params)
                        yield self._open(*(replace(job, seed=s) for s in range(options.seeds)))
                continue
            yield self._open(Job(task, "base", 0.0, 0, size))
            for method in options.methods:
                yield open_jobs(self.results, task, method, size, options.seeds)

    def _open(self, *jobs: Job) -> tuple[list[Job], int]:
        left = [job for job in jobs if self.results.get(job) is None]
        return left, len(left)

    def next(self, running: set[str]) -> Job | None:
        """A job to start now, or None while all that are left wait for others."""
        for jobs, _ in self._chains():
            for job in jobs:
                if job.key not in running and job.key not in self.failed:
                    return job
        return None

    def left(self) -> int:
        """About how many runs are left."""
        return sum(left for _, left in self._chains())


def work(pipe: Connection, *args: Any) -> None:
    """A run in a process of its own; what it returns, or its error as text, goes into the pipe."""
    from sweep.training import run

    # Ctrl-C reaches every process of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        pipe.send(run(*args))
    except Exception:  # noqa: BLE001 - it is reported, and the other runs go on
        pipe.send(traceback.format_exc())


def circumstances(workers: int) -> dict[str, Any]:
    """When, where and with what a run was made."""
    names = (
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    processor = next(names, platform.machine())
    return {
        "date": date.today().isoformat(),
        "machine": f"{processor}, {os.cpu_count()} cores, {workers} runs at a time",
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
    }


def sweep(options: argparse.Namespace, results: Results, folder: Path) -> None:
    from sweep.training import Loaded, load
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    plan = Plan(results, options)
    loaded: dict[tuple[str, str], Loaded] = {}
    running: dict[Connection, tuple[Job, Any]] = {}
    context = mp.get_context("fork")
    try:
        while True:
            while len(running) < options.workers:
                job = plan.next({job.key for job, _ in running.values()})
                if job is None:
                    break
                data = job.task, job.size
                if data not in loaded:
                    loaded[data] = load(*data, tokenizer, options.wheels)
                ours, theirs = context.Pipe()
                process = context.Process(target=work, args=(theirs, job, folder, loaded[data]))
                process.start()
                theirs.close()
                running[ours] = job, process
            if not running:
                break
            for pipe in wait(list(running)):
                job, process = running.pop(pipe)
                try:
                    outcome = pipe.recv()
                except EOFError:
                    outcome = "the process died"
                process.join()
                if isinstance(outcome, str):
                    plan.failed.add(job.key)
                    print(f"FAILED {job}\n{outcome}", flush=True)
                    continue
                results.add(job, {**outcome, **circumstances(options.workers)})
                print(
                    f"[{plan.left()} left] {job}: validation {outcome['validation_accuracy']:.4f}"
                    f" ({outcome['validation_loss']:.4f}), test {outcome['test_accuracy']:.4f},"
                    f" {outcome['cpu_s']:.0f} s of CPU",
                    flush=True,
                )
    finally:
        for _, process in running.values():
            process.kill()


def main() -> None:
    options = arguments()
    warnings.simplefilter("ignore")
    results = Results(options.results)
    if options.dry_run:
        print(f"about {Plan(results, options).left()} runs to do, {len(results.rows)} are done")
        return
    if options.tables:
        from sweep.tables import write

        write(results, options.size, HERE)
        return
    from bishare_dsl.testing.fetch import smollm2_folder

    folder = smollm2_folder(options.cache)
    counts(folder)
    with options.results.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another process writes {options.results}")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            sweep(options, results, folder)
        except KeyboardInterrupt:
            sys.exit("\ninterrupted; the same command goes on from here")


if __name__ == "__main__":
    main()
