"""Execute all runs, several at a time, and store each result when its run ends."""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import signal
import sys
import traceback
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from datetime import date
from pathlib import Path
from typing import Any

from harness.result import machine, versions

from bishare_dsl.resources import cache_folder
from sweep.methods import ABLATIONS, METHODS
from sweep.results import Job, Results
from sweep.search import Chain, finished, left, search
from sweep.tasks import DECIDING, TASKS

# Before torch is loaded: a run has one thread, and runs are forked off this process.
os.environ.setdefault("OMP_NUM_THREADS", "1")
PACKAGES = ("python", "bishare", "torch", "transformers", "peft")


def names(text: str) -> list[str]:
    """Return names with commas between them."""
    return text.split(",")


def arguments(what: str, folder: Path) -> argparse.ArgumentParser:
    """Return the options that every sweep has; its results are in its folder."""
    parser = argparse.ArgumentParser(description=what.splitlines()[0])
    parser.add_argument("--tasks", type=names, default=DECIDING, help=f"of {', '.join(TASKS)}")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, of a thread each")
    parser.add_argument("--results", type=Path, default=folder / "results.jsonl")
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.set_defaults(ablations=False)
    return parser


def chains(results: Results, options: argparse.Namespace) -> Iterator[Chain]:
    """Yield each series of runs that there is to do."""
    for task in options.tasks:
        if options.ablations:
            found = finished(results, task)
            for name, params in (variant for group in ABLATIONS.values() for variant in group):
                if name in found:
                    rate, seeds = found[name][0]["rate"], range(options.seeds)
                    yield left(results, *(Job(task, name, rate, s, params=params) for s in seeds))
            continue
        yield left(results, Job(task, "base", 0.0, 0))
        for name in options.methods:
            yield search(results, task, name, options.seeds)


def todo(
    results: Results, options: argparse.Namespace, begun: Collection[Job], workers: int
) -> Iterator[list[Job]]:
    """Yield what a worker can start, with no job that has begun: the jobs of a series, dealt out to workers.

    Those of bishare's methods go through the base together; of PEFT's and of the base's each runs alone.
    """
    for series, _ in chains(results, options):
        jobs = [job for job in series if job not in begun]
        apart = [job for job in jobs if job.method == "base" or METHODS[job.method].peft]
        yield from ([job] for job in apart)
        if not apart:
            yield from (jobs[i::workers] for i in range(min(workers, len(jobs))))


def sweep(results: Results, options: argparse.Namespace) -> None:
    """Do all runs; what can start depends on what is done."""
    from harness.model import smollm2_folder

    from sweep.training import run

    base = smollm2_folder(options.cache)
    running: dict[Future[Any], list[Job]] = {}
    failed: set[Job] = set()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Ctrl-C reaches every process of a terminal; the first one ends the others.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(
        options.workers, mp.get_context("fork"), signal.signal, ignore
    ) as pool:
        try:
            while True:
                free, begun = options.workers - len(running), failed.union(*running.values())
                for jobs in [*todo(results, options, begun, free)][:free]:
                    running[pool.submit(run, jobs, base, options.cache / "wheels")] = jobs
                if not running:
                    return
                done = wait(running, return_when=FIRST_COMPLETED).done
                for future in done:
                    jobs = running.pop(future)
                    if error := future.exception():
                        failed |= {*jobs}
                        print(*(f"FAILED {job}" for job in jobs), sep="\n", flush=True)
                        traceback.print_exception(error)
                        continue
                    for job, row in zip(jobs, future.result(), strict=True):
                        results.add(job, row | circumstances(options.workers))
                        print(
                            f"[{sum(n for _, n in chains(results, options))} left] {job}: validation"
                            f" {row['validation_accuracy']:.4f}, test {row['test_accuracy']:.4f},"
                            f" {row['cpu_s']:.0f} s of CPU",
                            flush=True,
                        )
        except KeyboardInterrupt:
            for process in mp.active_children():
                process.kill()
            sys.exit("\ninterrupted; the same command goes on from here")


def circumstances(workers: int) -> dict[str, object]:
    """Return when, where and with what a run was made."""
    here, known = machine(), versions()
    return {
        "date": date.today().isoformat(),
        "machine": f"{here['cpu']}, {here['cores']} cores, {workers} runs at a time",
        "versions": {name: known[name] for name in PACKAGES},
    }
