"""All runs that there are to do, some at a time, each in the results file when it is over."""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from datetime import date
from pathlib import Path

from harness.result import machine, versions

from bishare_dsl.resources import cache_folder
from sweep.methods import ABLATIONS
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


def sweep(results: Results, options: argparse.Namespace) -> None:
    """Do all runs; what can start depends on what is done."""
    from harness.model import smollm2_folder

    from sweep.training import run

    base = smollm2_folder(options.cache)
    running, failed = {}, set()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Ctrl-C reaches every process of a terminal; the first one ends the others.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(
        options.workers, mp.get_context("fork"), signal.signal, ignore
    ) as pool:
        try:
            while True:
                todo = [job for jobs, _ in chains(results, options) for job in jobs]
                todo = [job for job in todo if job not in failed and job not in running.values()]
                for job in todo[: options.workers - len(running)]:
                    running[pool.submit(run, job, base, options.cache / "wheels")] = job
                if not running:
                    return
                done = wait(running, return_when=FIRST_COMPLETED).done
                for future in done:
                    job = running.pop(future)
                    if error := future.exception():
                        failed.add(job)
                        print(f"FAILED {job}", flush=True)
                        traceback.print_exception(error)
                        continue
                    row = future.result() | circumstances(options.workers)
                    results.add(job, row)
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
