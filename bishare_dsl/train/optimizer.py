"""AdamW for adapters that train together: one step is a separate optimizer step for each; and schedules.

(Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", Algorithm 2.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
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
        """Do a step of the rows that have a rate; their gradients are clipped in place."""
        how = self.settings
        for group, rates in zip(self.param_groups, self.rates, strict=True):
            (p,) = group["params"]
            if p.grad is None or not rates:
                continue
            state, group["lr"] = self.state[p], max(rates.values())
            # On the CPU, also after loading: torch treats this name so.
            state["step"][[*rates]] += 1
            steps = state["step"].float().to(p.device, non_blocking=True)
            norm = torch.linalg.vector_norm(p.grad, dim=1).float()
            # Gradients are divided by this.
            clip = ((norm + 1e-6) / (how.max_norm or torch.inf)).clamp(min=1)
            refused = norm.isfinite().logical_not().float()
            # In place and row by row: the bank is larger than a processor's cache, and a copy of it slow.
            for row, rate in rates.items():
                moments = ([state[name][row]] for name in ("exp_avg", "exp_avg_sq"))
                torch._fused_adamw_(
                    *([p[row]], [p.grad[row]], *moments, [], [steps[row]]),
                    amsgrad=False,
                    lr=rate,
                    beta1=how.betas[0],
                    beta2=how.betas[1],
                    weight_decay=how.weight_decay,
                    eps=how.eps,
                    maximize=False,
                    grad_scale=clip[row],
                    found_inf=refused[row],
                )


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
