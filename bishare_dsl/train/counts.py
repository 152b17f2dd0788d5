"""What a run counts: losses, tokens and time; a checkpoint holds it, so that a resumed run counts on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]


class Counts:
    """Counts of a run, and of what came since something was last logged.

    Every process has to call `tokens`, `logged` and `state`.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._loss = torch.zeros((), device=accelerator.device)
        self._new = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        self._losses, self._logged, self._tokens = 0.0, 0, 0
        self._began = time.monotonic()
        self._first = self._last = (0.0, 0)

    def add(self, loss: torch.Tensor, inputs: Mapping[str, Any]) -> None:
        """Count the loss and the tokens of a part of a step; without waiting for the device."""
        mask = inputs.get("attention_mask")
        self._new += inputs["input_ids"].numel() if mask is None else mask.sum()
        self._loss += loss.detach()

    def tokens(self) -> int:
        """Count the tokens that were trained on so far, in all processes."""
        self._tokens += int(self._accelerator.reduce(self._new, "sum"))
        self._new.zero_()
        return self._tokens

    def log_values(self, step: int) -> dict[str, float]:
        """Return what is to be logged after a step: mean loss of the steps since, tokens, tokens a second."""
        loss = float(self._accelerator.reduce(self._loss, "mean"))
        mean = loss / max(1, step - self._logged)
        self._loss.zero_()
        self._losses, self._logged = self._losses + loss, step
        before, self._last = self._last, (time.monotonic() - self._began, self.tokens())
        return {
            "loss": mean,
            "tokens": self._tokens,
            "tokens_per_second": _speed(before, self._last),
        }

    def mean_loss(self) -> float:
        """Return the mean loss of all steps that were logged."""
        return self._losses / max(1, self._logged)

    def tokens_per_second(self) -> float:
        """Return the speed since training began or was resumed, until something was last logged."""
        return _speed(self._first, self._last)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time of a block, in which nothing is trained."""
        paused = time.monotonic()
        try:
            yield
        finally:
            self._began += time.monotonic() - paused

    def state(self) -> tuple[dict[str, Any], float]:
        """Return what all processes counted together, and the loss since the last log, of this one alone."""
        together = {"losses": self._losses, "logged": self._logged, "tokens": self.tokens()}
        return together, float(self._loss)

    def begin(self, state: Mapping[str, Any] | None, process: int, processes: int) -> None:
        """Start the clock, and count on from a checkpoint's state, if there is one."""
        if state is not None:
            own: Sequence[float] = [each["loss"] for each in state["processes"]]
            same = len(own) == processes
            self._loss.fill_(own[process] if same else sum(own) / len(own))
            self._losses, self._logged, self._tokens = (
                state[name] for name in ("losses", "logged", "tokens")
            )
        self._began = time.monotonic()
        self._first = self._last = (0.0, self._tokens)


def _speed(before: tuple[float, int], now: tuple[float, int]) -> float:
    return (now[1] - before[1]) / max(now[0] - before[0], 1e-9)
