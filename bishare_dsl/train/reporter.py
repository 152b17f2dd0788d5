"""Output of a run for people: notes, problems and progress."""

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
    """Reports notes on standard error and problems as warnings, by default.

    Attributes:
        quiet: whether to hide notes and the progress bar.
        say: receives a note.
        report: receives a problem that does not stop the run.
        warn: receives a rendered warning.
    """

    quiet: bool = False
    say: Callable[[str], None] = _note
    report: Callable[[Problem, SourceMap | None], None] = _problem
    warn: Callable[[str], None] = _warn

    def silence(self) -> None:
        """Stop all output, because another process reports."""
        self.quiet = True
        self.report, self.warn = (lambda *_: None), (lambda _: None)

    def note(self, text: str) -> None:
        """Report an event or a fact."""
        if not self.quiet:
            self.say(text)


class Progress(TrainerCallback):
    """Shows steps, loss, tokens per second and the remaining time: a bar on a terminal, lines elsewhere."""

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
            disable=None,  # Disables it without a terminal.
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
        """Restore the terminal, also after an error."""
        if self._bar is not None:
            self._bar.close()

    def _write(self, state: State, *parts: str, beside_bar: bool = False) -> None:
        if self._bar.disable or beside_bar:
            step = f"step {state.global_step:,}/{state.max_steps:,}"
            self._bar.write(" · ".join((step, *parts)), file=self._stream)
            self._stream.flush()
