"""AdamW for adapters that train together: one step is a separate optimizer step for each; and schedules.

(Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", Algorithm 2.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments as Args
from transformers import get_scheduler

from bishare_dsl.train.errors import catch_refusals


@dataclass(frozen=True)
class Settings:
    """The settings of AdamW, as in `TrainingArguments`; a ``max_norm`` of 0 disables clipping."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_norm: float = 0.0

    @classmethod
    def of(cls, args: Args) -> Settings:
        """Return those of a Trainer's arguments."""
        betas = args.adam_beta1, args.adam_beta2
        return cls(betas, args.adam_epsilon, args.weight_decay, args.max_grad_norm)


class RowAdamW(torch.optim.Optimizer):
    """AdamW in which each row of each parameter ``(rows, values)`` belongs to one adapter.

    Each row has a separate state, learning rate, clipping norm and step count. A step computes each row as
    if it stepped alone. A row with a non-finite gradient does not change; other rows are not affected.

    Args:
        parameters: ``(rows, values)`` each.
        settings: of the next steps.

    Attributes:
        rates: for each parameter, the learning rates of the rows that step next.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], settings: Settings = Settings()) -> None:
        super().__init__([{"params": [p]} for p in parameters], {"lr": 0.0})
        self.settings = settings
        self.rates: list[Mapping[int, float]] = [{} for _ in parameters]
        for p in parameters:
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self.state[p] = {**moments, "step": torch.zeros(len(p), dtype=torch.long)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do a step of the rows that have a rate."""
        how = self.settings
        for group, rates in zip(self.param_groups, self.rates, strict=True):
            (p,) = group["params"]
            if p.grad is None or not rates:
                continue
            state, group["lr"] = self.state[p], max(rates.values())
            rows = torch.tensor([*rates]).to(p.device, non_blocking=True)
            held = (p.grad, p, state["exp_avg"], state["exp_avg_sq"])
            gradient, value, mean, square = (t.index_select(0, rows) for t in held)
            # On the CPU, also after loading: torch treats this name so.
            state["step"][[*rates]] += 1
            steps = state["step"][[*rates]].tolist()
            norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            finite = norm.isfinite().to(p.dtype)
            gradient = torch.where(finite > 0, gradient, 0)
            if how.max_norm:
                gradient *= torch.where(finite > 0, how.max_norm / (norm + 1e-6), 0).clamp(max=1)
            mean.lerp_(gradient, finite * (1 - how.betas[0]))
            square.lerp_(gradient.square(), finite * (1 - how.betas[1]))
            first, second = (_column((1 - beta**n for n in steps), p) for beta in how.betas)
            rate = _column(rates.values(), p) * finite
            if how.weight_decay:
                value.mul_(1 - rate * how.weight_decay)
            value.sub_(mean / (square / second).sqrt_().add_(how.eps) * (rate / first))
            for tensor, part in zip(held[1:], (value, mean, square), strict=True):
                tensor.index_copy_(0, rows, part)


def _column(values: Iterable[float], like: Tensor) -> Tensor:
    """Return a column with a value per row, without waiting for the device."""
    return torch.tensor([*values], dtype=like.dtype).to(like.device, non_blocking=True).unsqueeze(1)


Schedule = Callable[[int], float]
"""A factor of the learning rate, as a function of the number of steps done."""


def schedule_of(args: Args, warm_up: int, steps: int) -> Schedule | None:
    """Return the schedule of a run with this many steps; None if it depends on more than the step.

    The k-th of n warm-up steps has k / n of the learning rate, so the first one learns too.
    """
    probe = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    kinds: Any = args.lr_scheduler_kwargs
    with catch_refusals():
        scheduler = get_scheduler(args.lr_scheduler_type, probe, warm_up, steps, kinds)
    if not isinstance(scheduler, LambdaLR):
        return None
    (factor,) = scheduler.lr_lambdas
    return lambda step: factor(step + 1 if step < warm_up else step)
