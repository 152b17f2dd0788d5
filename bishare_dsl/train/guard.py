"""A loss that is not a number stops a run, and what was good before is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


class NotFiniteError(Exception):
    """A step whose loss or gradient is not a number, before it is applied.

    Attributes:
        what: ``"the loss"`` or ``"the gradient"``.
        value: what it is.
        restore: whether the parameters themselves gave the loss, so that those before are to be kept.
    """

    def __init__(self, what: str, value: float, *, restore: bool):
        super().__init__(f"{what} is {value}")
        self.what, self.value, self.restore = what, value, restore


class Guard:
    """Watches the losses of a step, and keeps a copy of the parameters that last gave one.

    An optimizer step that goes wrong leaves parameters whose loss is the first to tell, one step later. So
    the parameters that are known to be good are those before it: the copy.

    Attributes:
        step: optimizer steps that are in the copy; None where there is none yet.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self._loss: torch.Tensor | float = 0.0
        self._kept: list[torch.Tensor] = []

    def see(self, loss: torch.Tensor) -> None:
        """Add a part of the step's loss; without waiting for the device."""
        self._loss = self._loss + loss.detach().float().sum()

    def loss(self) -> float:
        """Return the step's loss so far, of this process; the next step starts anew."""
        found, self._loss = float(self._loss), 0.0
        return found

    def keep(self, parameters: Sequence[torch.Tensor], step: int) -> None:
        """Copy parameters that gave a loss and a gradient."""
        if self._kept:
            for kept, parameter in zip(self._kept, parameters, strict=True):
                kept.copy_(parameter.detach())
        else:
            self._kept = [parameter.detach().clone() for parameter in parameters]
        self.step = step

    @torch.no_grad()
    def restore(self, parameters: Sequence[torch.Tensor]) -> None:
        """Set the parameters to the values that were last known to be good."""
        for kept, parameter in zip(self._kept, parameters, strict=True):
            parameter.copy_(kept)


def check_step(loss: float, bad_elsewhere: bool, gradient: float) -> None:
    """Check that a step may be applied.

    Args:
        loss: of this process.
        bad_elsewhere: whether that of any process is not a number.
        gradient: the norm of the gradient; 0 where it is not to be judged.

    Raises:
        NotFiniteError: it may not.
    """
    if not math.isfinite(loss) or bad_elsewhere:
        value = math.nan if math.isfinite(loss) else loss
        raise NotFiniteError("the loss", value, restore=True)
    if not math.isfinite(gradient):
        raise NotFiniteError("the gradient", gradient, restore=False)
