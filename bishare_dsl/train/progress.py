"""How far a run is, for a person: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args


class Progress(TrainerCallback):
    """Shows a run on standard error."""

    _began = (0, 0.0)

    def on_train_begin(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self._began = (state.num_input_tokens_seen, time.monotonic())

    def speed(self, state: State) -> str:
        """Say how many tokens a second were trained on."""
        tokens, began = self._began
        seen = state.num_input_tokens_seen - tokens
        return f"{seen / max(time.monotonic() - began, 1e-9):,.0f} tokens/s"

    def close(self) -> None:
        """Leave the terminal as it was found; also after an error."""


def progress(stream: TextIO | None = None) -> Progress:
    """Make a callback that shows steps, loss, tokens a second and the time left on standard error."""
    stream = stream or sys.stderr
    return _Bar(stream) if stream.isatty() else _Lines(stream)


class _Lines(Progress):
    """A line for each time that something is logged."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def on_log(self, args: Args, state: State, control: Control, **more: Any) -> None:
        logs = more.get("logs") or {}
        if "loss" in logs:
            rate = f"lr {logs['learning_rate']:.2e}"
            self._write(state, f"loss {logs['loss']:.4f}", rate, self.speed(state))
        elif "eval_loss" in logs:
            self._write(state, f"held-out loss {logs['eval_loss']:.4f}")

    def on_save(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self._write(state, "checkpoint saved")

    def _write(self, state: State, *parts: str) -> None:
        step = f"step {state.global_step:,}/{state.max_steps:,}"
        self._stream.write(" · ".join((step, *parts)) + "\n")
        self._stream.flush()


class _Bar(Progress):
    """One line that changes."""

    def __init__(self, stream: TextIO) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[said]}"),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(file=stream),
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._train = self._bar.add_task("training", total=None, said="")

    def on_train_begin(self, args: Args, state: State, control: Control, **more: Any) -> None:
        super().on_train_begin(args, state, control, **more)
        self._bar.reset(self._train, total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_step_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self._bar.update(self._train, completed=state.global_step)

    def on_log(self, args: Args, state: State, control: Control, **more: Any) -> None:
        logs = more.get("logs") or {}
        if "loss" in logs:
            self._bar.update(self._train, said=f"loss {logs['loss']:.4f} · {self.speed(state)}")
        elif "eval_loss" in logs:
            said = f"step {state.global_step:,}: held-out loss {logs['eval_loss']:.4f}"
            self._bar.console.print(said, highlight=False)

    def close(self) -> None:
        self._bar.stop()
