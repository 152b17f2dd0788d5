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
        self._began = (0, 0.0)

    def on_train_begin(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self._began = (state.global_step, time.monotonic())

    def on_log(self, args: Args, state: State, control: Control, **more: Any) -> None:
        logs = more.get("logs") or {}
        parts = []
        if "loss" in logs:
            parts = [_loss(logs), f"lr {logs['learning_rate']:.2e}", _rate(logs)]
            if "grad_norm" in logs:
                parts.insert(1, f"gradient {logs['grad_norm']:.3g}")
            parts.append(f"{_time(self._left(state))} left")
        elif "eval_loss" in logs:
            parts = [f"held-out loss {logs['eval_loss']:.4f}"]
        if parts:
            self._write(f"step {state.global_step:,}/{state.max_steps:,}", *parts)

    def on_save(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self._write(f"step {state.global_step:,}/{state.max_steps:,}", "checkpoint saved")

    def _left(self, state: State) -> float:
        step, began = self._began
        each = (time.monotonic() - began) / max(1, state.global_step - step)
        return each * (state.max_steps - state.global_step)

    def _write(self, *parts: str) -> None:
        self._stream.write(" · ".join(part for part in parts if part) + "\n")
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
        self._eval: Any = None

    def on_train_begin(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self._bar.reset(self._train, total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_step_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self._bar.update(self._train, completed=state.global_step)

    def on_log(self, args: Args, state: State, control: Control, **more: Any) -> None:
        logs = more.get("logs") or {}
        if "loss" in logs:
            said = " · ".join(part for part in (_loss(logs), _rate(logs)) if part)
            self._bar.update(self._train, said=said)
        elif "eval_loss" in logs:
            said = f"step {state.global_step:,}: held-out loss {logs['eval_loss']:.4f}"
            self._bar.console.print(said, highlight=False)

    def on_prediction_step(self, args: Args, state: State, control: Control, **more: Any) -> None:
        if self._eval is None:
            self._eval = self._bar.add_task(
                "evaluating", total=len(more["eval_dataloader"]), said=""
            )
        self._bar.advance(self._eval)

    def on_evaluate(self, args: Args, state: State, control: Control, **_: Any) -> None:
        if self._eval is not None:
            self._bar.remove_task(self._eval)
            self._eval = None

    def close(self) -> None:
        self._bar.stop()


def _loss(logs: dict[str, float]) -> str:
    return f"loss {logs['loss']:.4f}"


def _rate(logs: dict[str, float]) -> str:
    return f"{logs['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in logs else ""


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
