"""How far a run is, for a person: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args


class Progress(TrainerCallback):
    """Shows steps, loss, tokens a second and the time left, by default on standard error."""

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
