"""The quality of bishare's specs and of PEFT's methods on three real tasks; see README.md beside this file.

    run.py [--tasks T,…] [--methods M,…] [--seeds N] [--size small|full] [--workers N]
    run.py --method ss --set slice=leading      one ablation, at the learning rate of the method
    run.py --ablations | --speed | --summary | --dry-run

Interrupt it as you like: a run is in the results file when it is over, and is not done again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing as mp
import os
import platform
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

# Before torch and the tokeniser are loaded: a run has one thread, and runs are forked off this process.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from sweep.data import TASKS
from sweep.methods import ABLATIONS, METHODS, counts
from sweep.results import Job, Results
from sweep.search import chosen, open_jobs

HERE = Path(__file__).parent
PACKAGES = ("bishare", "torch", "transformers", "peft")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    listed = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--tasks", type=listed, default=list(TASKS), help=", ".join(TASKS))
    parser.add_argument(
        "--methods", "--method", type=listed, default=list(METHODS), help=", ".join(METHODS)
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
    parser.add_argument("--dry-run", action="store_true", help="only say what there is to do")
    parser.add_argument("--speed", action="store_true", help="measure speed and memory instead")
    parser.add_argument("--summary", action="store_true", help="only write table and plot again")
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(os.environ.get("BISHARE_CACHE") or "~/.cache/bishare").expanduser(),
    )
    parser.add_argument("--wheels", type=Path, help="of the data; CACHE/wheels by default")
    parser.add_argument("--pids", type=Path, help="a file that always names the running processes")
    options = parser.parse_args()
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
        elif options.sets:
            sets = dict(pair.split("=", 1) for pair in options.sets)
            params = {name: value(text) for name, text in sets.items()}
            self.variants = [(options.methods[0], params)]
        else:
            self.variants = []

    def _chains(self) -> Iterator[tuple[list[Job], int]]:
        """Each chain's jobs that can start now, and about how many are left of it."""
        options = self.options
        for task in options.tasks:
            if self.variants:
                for method, params in self.variants:
                    rate = chosen(self.results, task, method, options.size)
                    if rate is None:
                        continue
                    jobs = [
                        Job(task, method, rate, seed, options.size, params)
                        for seed in range(options.seeds)
                    ]
                    jobs = [job for job in jobs if self.results.get(job) is None]
                    yield jobs, len(jobs)
                continue
            base = Job(task, "base", 0.0, 0, options.size)
            if self.results.get(base) is None:
                yield [base], 1
            for method in options.methods:
                yield open_jobs(self.results, task, method, options.size, options.seeds)

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


def work(pipe: Connection, run: Callable[..., dict[str, Any]], *args: Any) -> None:
    """A run in a process of its own; what it returns, or its error as text, goes into the pipe."""
    # Ctrl-C reaches every process of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        pipe.send(run(*args))
    except Exception:  # noqa: BLE001 - it is reported, and the other runs go on
        pipe.send(traceback.format_exc())


def circumstances(workers: int) -> dict[str, Any]:
    """Where and with what a run was made."""
    names = (
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return {
        "machine": f"{next(names, platform.machine())}, {os.cpu_count()} cores, {workers} runs at a time",
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
    }


def sweep(options: argparse.Namespace, results: Results, folder: Path) -> None:
    from sweep.training import Loaded, load, run, run_base
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    where = circumstances(options.workers)
    plan = Plan(results, options)
    loaded: dict[str, Loaded] = {}
    running: dict[Connection, tuple[Job, Any]] = {}
    context = mp.get_context("fork")
    done, started = 0, time.monotonic()
    try:
        while True:
            while len(running) < options.workers:
                job = plan.next({job.key for job, _ in running.values()})
                if job is None:
                    break
                if job.task not in loaded:
                    loaded[job.task] = load(job.task, job.size, tokenizer, options.wheels)
                ours, theirs = context.Pipe()
                what = run_base if job.method == "base" else run
                args = (theirs, what, job, folder, loaded[job.task])
                process = context.Process(target=work, args=args)
                process.start()
                theirs.close()
                running[ours] = job, process
            if options.pids:
                pids = [os.getpid(), *(process.pid for _, process in running.values())]
                options.pids.write_text("\n".join(map(str, pids)) + "\n")
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
                results.add(job, {**outcome, **where})
                done += 1
                left = plan.left()
                eta = (time.monotonic() - started) / done * left / 60
                print(
                    f"[{done}/{done + left}, {eta:.0f} min left] {job}:"
                    f" validation {outcome['validation_accuracy']:.4f}"
                    f" ({outcome['validation_loss']:.4f}), test {outcome['test_accuracy']:.4f},"
                    f" {outcome.get('train_cpu_s', 0):.0f} s of CPU to train",
                    flush=True,
                )
    finally:
        for _, process in running.values():
            process.kill()
        if options.pids:
            options.pids.unlink(missing_ok=True)


def speed(options: argparse.Namespace, folder: Path) -> None:
    """Measure each method in turn, each time in a process of its own, and keep it beside the results."""
    from sweep.speed import measure
    from sweep.training import load
    from transformers import AutoTokenizer

    def apart(function: Callable[..., Any], *args: Any) -> Any:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, function, *args))
        process.start()
        theirs.close()
        outcome = ours.recv()
        process.join()
        if isinstance(outcome, str):
            sys.exit(outcome)
        return outcome

    context = mp.get_context("fork")
    task = options.tasks[0]
    loaded = load(task, "small", AutoTokenizer.from_pretrained(folder), options.wheels)
    before = os.getloadavg()[0]
    methods = measure(options.methods, task, folder, loaded, apart)
    found = {"task": task, "load_before": before, **circumstances(1), "methods": methods}
    (HERE / "speed.json").write_text(json.dumps(found, indent=2) + "\n")
    for name, values in methods.items():
        print(
            f"{name}: {values['steps_per_s']:.3f} steps/s, {values['peak_bytes'] / 2**20:,.0f} MiB"
        )


def main() -> None:
    options = arguments()
    warnings.simplefilter("ignore")
    results = Results(options.results)
    if options.dry_run:
        print(f"about {Plan(results, options).left()} runs to do, {len(results.rows)} are done")
        return
    if options.summary:
        from sweep.report import summarise

        summarise(results, HERE, options.size, options.seeds)
        return
    from bishare_dsl.testing.fetch import smollm2_folder

    folder = smollm2_folder(options.cache)
    found = counts(folder)
    for name, count in found.items():
        print(f"{name}: {count:,} parameters, {100 * count / found['lora']:.2f}% of LoRA's")
    if options.speed:
        speed(options, folder)
        return
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
