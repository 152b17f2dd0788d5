"""AdamW for adapters that train together: one step of it is a step of an optimizer for each.

(Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", Algorithm 2.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Rate = Callable[[int], float]
"""The learning rate of an adapter, by how many steps it has done."""


@dataclass(frozen=True)
class Settings:
    """What AdamW is told, as in `TrainingArguments`; ``max_norm`` 0 does not clip."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_norm: float = 0.0


class RowAdamW(torch.optim.Optimizer):
    """AdamW of which each row of each parameter ``(rows, values)`` is an adapter's.

    State, rate, clipping and the number of the step are a row's own. A row whose gradient is no number stays
    as it is from then on; so do the others not.

    Args:
        parameters: ``(rows, values)`` each.
        rates: of each parameter, one for each row.
        scales: of each parameter, factors of the rate, ``(rows or 1, values or 1)``.
        settings: of all rows.
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
        """Of each parameter the rows that have a step now."""

    def stopped(self) -> list[list[int]]:
        """Return the rows of each parameter that were stopped; waits for the device."""
        flags = [self.state[g["params"][0]]["finite"].tolist() for g in self.param_groups]
        return [[row for row, finite in enumerate(these) if not finite] for these in flags]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do a step of the rows that have one."""
        for i, group in enumerate(self.param_groups):
            (p,) = group["params"]
            rows = self.stepping[i]
            if p.grad is None or not len(rows):
                continue
            state = self.state[p]
            rates = [self._rates[i][row](state["done"][row]) for row in rows]
            for row in rows:
                state["done"][row] += 1
            done = [state["done"][row] for row in rows]
            group["lr"] = rates[0]
            if len(rows) == len(p):
                self._step(p, p.grad, state, rates, done, self._scales[i])
                continue
            index = torch.tensor(rows).to(p.device, non_blocking=True)
            scale = self._scales[i]
            part = {n: state[n][index] for n in ("exp_avg", "exp_avg_sq", "finite")}
            value = p[index]
            scale = scale[index] if len(scale) > 1 else scale
            self._step(value, p.grad[index], part, rates, done, scale)
            p.index_copy_(0, index, value)
            for name, found in part.items():
                state[name].index_copy_(0, index, found)

    def _step(
        self,
        p: Tensor,
        gradient: Tensor,
        state: dict[str, Any],
        rates: Sequence[float],
        done: Sequence[int],
        scale: Tensor,
    ) -> None:
        """Do the step of some rows in place."""

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=p.dtype).to(p.device, non_blocking=True).unsqueeze(1)

        how = self._settings
        beta1, beta2 = how.betas
        norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        state["finite"] *= norm.squeeze(1).isfinite()
        going = state["finite"].unsqueeze(1)
        if how.max_norm:
            gradient = gradient * (how.max_norm / (norm + 1e-6)).clamp(max=1)
        gradient = torch.where(going > 0, gradient, 0)
        rate = column(rates) * going * scale
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        corrected = square.sqrt().div_(column([(1 - beta2**n) ** 0.5 for n in done])).add_(how.eps)
        if how.weight_decay:
            p.mul_(1 - rate * how.weight_decay)
        p.sub_(mean / corrected * (rate / column([1 - beta1**n for n in done])))
