"""AdamW for adapters that train together: one step is a separate optimizer step for each.

(Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", Algorithm 2.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Rate = Callable[[int], float]
"""The learning rate of an adapter, as a function of its number of steps done."""


@dataclass(frozen=True)
class Settings:
    """The settings of AdamW, as in `TrainingArguments`; a ``max_norm`` of 0 disables clipping."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_norm: float = 0.0


class RowAdamW(torch.optim.Optimizer):
    """AdamW in which each row of each parameter ``(rows, values)`` belongs to one adapter.

    Each row has a separate state, learning rate, clipping norm and step count. A row with a non-finite
    gradient is frozen from then on; other rows are not affected.

    Args:
        parameters: ``(rows, values)`` each.
        rates: for each parameter, the schedule of each row.
        scales: for each parameter, learning rate factors, ``(rows or 1, values or 1)``.
        settings: the settings of all rows.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        rates: Sequence[Sequence[Rate]],
        scales: Sequence[Tensor],
        settings: Settings = Settings(),
    ) -> None:
        super().__init__([{"params": [p]} for p in parameters], {"lr": rates[0][0](0)})
        self._rates, self._scales, self._settings = rates, scales, settings
        for p in parameters:
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            finite = torch.ones(len(p), dtype=p.dtype, device=p.device)
            self.state[p] = {**moments, "finite": finite, "done": [0] * len(p)}
        self.stepping: list[Sequence[int]] = [range(len(p)) for p in parameters]
        """For each parameter, the rows that are active in this step."""

    def stopped(self) -> list[list[int]]:
        """Return the frozen rows of each parameter; waits for the device."""
        flags = [self.state[g["params"][0]]["finite"].tolist() for g in self.param_groups]
        return [[row for row, finite in enumerate(these) if not finite] for these in flags]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do a step of the active rows."""
        how = self._settings
        beta1, beta2 = how.betas
        for i, group in enumerate(self.param_groups):
            (p,) = group["params"]
            rows = self.stepping[i]
            if p.grad is None or not len(rows):
                continue
            state, active, rates = self.state[p], [0.0] * len(p), [0.0] * len(p)
            steps: list[int] = state["done"]
            for row in rows:
                active[row], rates[row] = 1.0, self._rates[i][row](steps[row])
                steps[row] += 1
            group["lr"] = rates[rows[0]]
            norm = torch.linalg.vector_norm(p.grad, dim=1, keepdim=True)
            state["finite"] *= norm.squeeze(1).isfinite()
            mask = _column(active, p) * state["finite"].unsqueeze(1)
            gradient = torch.where(mask > 0, p.grad, 0)
            if how.max_norm:
                gradient *= torch.where(mask > 0, how.max_norm / (norm + 1e-6), 0).clamp(max=1)
            mean = state["exp_avg"].lerp_(gradient, mask * (1 - beta1))
            square = state["exp_avg_sq"].lerp_(gradient.square(), mask * (1 - beta2))
            first, second = (
                _column([1 - beta ** max(n, 1) for n in steps], p) for beta in how.betas
            )
            rate = _column(rates, p) * mask * self._scales[i]
            if how.weight_decay:
                p.mul_(1 - rate * how.weight_decay)
            p.sub_(mean / (square / second).sqrt_().add_(how.eps) * (rate / first))


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """Return a column with a value per row, without waiting for the device."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True).unsqueeze(1)
