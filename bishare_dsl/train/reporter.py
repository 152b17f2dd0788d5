"""What a person sees of a run: notes, findings, and how far it is."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args

from bishare_dsl.diagnostics import BishareWarning, Problem, SourceMap, escaped, render


def _note(text: str) -> None:
    sys.stderr.write(f"{escaped(text)}\n")


def _problem(problem: Problem, where: SourceMap | None) -> None:
    _warn(render(problem, where))


def _warn(text: str) -> None:
    warnings.warn(text, BishareWarning, stacklevel=5)


@dataclass
class Reporter:
    """By default notes go to standard error, and findings become warnings, as of any call from Python.

    Attributes:
        quiet: whether notes and the progress bar are left out.
        say: takes a note.
        report: takes a problem that stops nothing.
        warn: takes a warning that has been rendered already.
    """

    quiet: bool = False
    say: Callable[[str], None] = _note
    report: Callable[[Problem, SourceMap | None], None] = _problem
    warn: Callable[[str], None] = _warn

    def silence(self) -> None:
        """Say nothing any more: another process does."""
        self.quiet = True
        self.report, self.warn = (lambda *_: None), (lambda _: None)

    def note(self, text: str) -> None:
        """Say what happens, or what to know."""
        if not self.quiet:
            self.say(text)


class Progress(TrainerCallback):
    """Shows steps, loss, tokens a second and the time left: a bar on a terminal, lines elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: Any = None

    def on_train_begin(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self._began = state.num_input_tokens_seen, time.monotonic()
        self._bar = tqdm(
            desc="training",
            total=state.max_steps,
            initial=state.global_step,
            file=self._stream,
            disable=None,  # Where there is no terminal.
            dynamic_ncols=True,
        )

    def on_step_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Args, state: State, control: Control, **more: Any) -> None:
        logs = more.get("logs") or {}
        if "loss" in logs:
            tokens, began = self._began
            seen = state.num_input_tokens_seen - tokens
            speed = f"{seen / max(time.monotonic() - began, 1e-9):,.0f} tokens/s"
            loss, rate = f"loss {logs['loss']:.4f}", f"lr {logs['learning_rate']:.2e}"
            self._bar.set_postfix_str(f"{loss} · {speed}")
            self._write(state, loss, rate, speed)
        elif "eval_loss" in logs:
            self._write(state, f"held-out loss {logs['eval_loss']:.4f}", beside_bar=True)

    def on_save(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self._write(state, "checkpoint saved")

    def close(self) -> None:
        """Leave the terminal as it was found; also after an error."""
        if self._bar is not None:
            self._bar.close()

    def _write(self, state: State, *parts: str, beside_bar: bool = False) -> None:
        if self._bar.disable or beside_bar:
            step = f"step {state.global_step:,}/{state.max_steps:,}"
            self._bar.write(" · ".join((step, *parts)), file=self._stream)
            self._stream.flush()
