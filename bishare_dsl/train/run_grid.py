"""Run the cells of a grid, each as an ordinary run, on a base that is loaded once."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedModel, TrainerCallback

from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.models import resolve
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.folder import RUN_FILE, discard_unfinished
from bishare_dsl.train.grid import Cell, State
from bishare_dsl.train.prepare import load_base
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.request import Request
from bishare_dsl.train.run import run


def run_grid(cells: Sequence[Cell], reporter: Reporter) -> None:
    """Run the cells that are not done. One that diverges is marked in its record and left out.

    Raises:
        BishareError: see `bishare_dsl.train.train`.
        TrainingInterrupted: SIGINT or SIGTERM arrived; the same call goes on from the checkpoint.
    """
    counts = Counter(cell.state for cell in cells)
    states = [f"{counts[state]} {state.value}" for state in State if counts[state]]
    reporter.note(f"{len(cells)} runs: {', '.join(states)}")
    left = [cell for cell in cells if cell.state in (State.NEW, State.INTERRUPTED)]

    base = _Base(reporter)
    with _progress(len(left), reporter) as progress:
        for cell in left:
            progress.begin(cell.folder.name)
            progress.end(_run_cell(cell, base, reporter, progress))


@dataclass
class _Base:
    """The base of all cells, which is loaded for the first of them.

    Attributes:
        reporter: receives a note before it is loaded.
        model: the base; None until then.
    """

    reporter: Reporter
    model: PreTrainedModel | None = None

    def load(self, request: Request) -> PreTrainedModel:
        """Return the base that a request names."""
        if self.model is None:
            self.model = load_base(request, resolve(request.model), self.reporter)[0]
        return self.model

    def unload(self) -> None:
        """Remove the adapter of a cell."""
        handle = getattr(self.model, "bishare", None)
        if handle is not None:
            handle.unload()


def _run_cell(cell: Cell, base: _Base, reporter: Reporter, progress: _Progress) -> str:
    """Run a cell, leave the base as it was, and return the result in words."""
    is_first = os.environ.get("RANK", "0") == "0"
    if is_first and cell.state is State.NEW and (cell.folder / RUN_FILE).is_file():
        discard_unfinished(cell.folder)
    silent = replace(reporter, say=lambda _: None, shows_steps=False)
    try:
        loaded = partial(base.load, cell.request)
        result = run(cell.request, silent, callbacks=[progress], loaded=loaded)
    except TrainError as error:
        if error.problems[0].code != codes.NOT_FINITE.code:
            raise
        return f"diverged, and is left out: {error.problems[0].message}"
    finally:
        base.unload()
    if result.accuracy is not None:
        score = f"held-out accuracy {result.accuracy:.1%}"
    elif result.eval_loss is not None:
        score = f"held-out loss {result.eval_loss:.4f}"
    else:
        score = f"last loss {result.loss_last:.4f}"
    return f"{score}, {_duration(result.seconds)}"


@dataclass(eq=False)
class _Progress(TrainerCallback):
    """The progress of a grid: a bar of all its steps on a terminal, and lines on each cell.

    Attributes:
        bar: has a unit for each cell.
        reporter: receives the lines.
        began: the time when the first cell began.
        done: the cells that are done.
    """

    bar: Any
    reporter: Reporter
    began: float
    done: int = 0

    def begin(self, name: str) -> None:
        """Say which cell begins, and how long the others will take."""
        text = f"{self.done + 1} of {self.bar.total}: {name}"
        if self.done:
            each = (time.monotonic() - self.began) / self.done
            text += f"; about {_duration(each * (self.bar.total - self.done))} left"
        self._say(text)

    def end(self, text: str) -> None:
        """Say how a cell has ended."""
        self.done += 1
        self._move(self.done)
        self._say(f"  {text}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count a step of the cell that runs."""
        self._move(self.done + state.global_step / state.max_steps)

    def _move(self, cells: float) -> None:
        self.bar.n = cells
        self.bar.refresh()

    def _say(self, text: str) -> None:
        self.bar.clear()
        self.reporter.note(text)
        self.bar.refresh()


@contextmanager
def _progress(cells: int, reporter: Reporter) -> Iterator[_Progress]:
    """Yield the progress of so many cells. Without a terminal there is no bar."""
    form = "{percentage:3.0f}% |{bar}| {elapsed}<{remaining}"
    is_off = reporter.quiet or not sys.stderr.isatty()
    with tqdm(total=cells, bar_format=form, leave=False, disable=is_off) as bar:
        yield _Progress(bar, reporter, time.monotonic())


def _duration(seconds: float) -> str:
    """Return a time in words, in the unit that suits it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
