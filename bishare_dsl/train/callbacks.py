"""A callback for transformers' and TRL's Trainers: check that all tensors train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args

from bishare_dsl.diagnostics import Problem, SourceMap
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.models.hooks import own_part
from bishare_dsl.train.bank_trainer import BankModel
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.reporter import Reporter


class GradientCheck(TrainerCallback):
    """Reports trainable tensors that have no gradient (BS873).

    The first step is checked for missing gradients. After two steps at a learning rate above 0, gradients
    that are all zero are reported too; before, A's gradient is zero because B is. In a run of several
    tasks, each task is checked.

        trainer = SFTTrainer(model, ..., callbacks=[GradientCheck()])

    Args:
        stop: whether to raise an error instead of warning.
        report: receives the problem; by default, it becomes a warning.
    """

    def __init__(
        self,
        *,
        stop: bool = False,
        report: Callable[[Problem, SourceMap | None], None] | None = None,
    ) -> None:
        self._stop, self._report = stop, report or Reporter().report
        self._calls = self._updates = 0

    def on_pre_optimizer_step(
        self,
        args: Args,
        state: State,
        control: Control,
        model: nn.Module | None = None,
        **more: Any,
    ) -> None:
        """Check the gradients of the first step, and those after two updates."""
        first, zeros = self._calls == 0, self._updates == 2
        self._calls += 1
        groups = getattr(more.get("optimizer"), "param_groups", ())
        self._updates += any(group["lr"] for group in groups) and self._updates < 3
        sharded = getattr(args, "deepspeed_plugin", None)  # DeepSpeed keeps gradients elsewhere.
        if model is None or sharded or not (first or zeros):
            return
        if isinstance(model, BankModel):
            trainable: dict[str, Any] = {} if first else dict(model.gradients())
        else:
            trainable = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        missing = [
            name
            for name, grad in trainable.items()
            if (grad is None if first else grad is not None and not own_part(grad).any())
        ]
        if missing:
            names = ", ".join(f"`{name}`" for name in missing[:8])
            names += f" and {len(missing) - 8} more" if missing[8:] else ""
            problem = codes.NO_GRADIENT(
                count=len(missing), total=len(trainable), step=state.global_step + 1, names=names
            )
            if self._stop:
                raise TrainError(problem)
            self._report(problem, None)
