"""transformers' Trainer for an adapter, with the model's own loss of trained tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments

from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.arguments import catch_refusals
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.loss import among_options, are_likeliest, learned_logits, loss_of
from bishare_dsl.train.watch import schedule_of

if TYPE_CHECKING:
    from torch import nn


class AdapterTrainer(Trainer):
    """A Trainer for the adapter of a PEFT model, and the base of the one for several tasks.

    Args:
        warm_up: maps the number of steps of a run to its warm-up steps.
        **arguments: as for Trainer.

    Attributes:
        done: the steps of the checkpoint that training resumes from.
    """

    done = 0
    lr_scheduler: Any

    def __init__(
        self,
        *,
        warm_up: Callable[[int], int],
        model: Any,
        args: TrainingArguments,
        **arguments: Any,
    ) -> None:
        self._warm_up = warm_up
        metric = str(args.metric_for_best_model or "loss").removeprefix("eval_")
        chosen = among_options(arguments.get("eval_dataset"))
        if metric not in ("loss", "accuracy" if chosen else "loss"):
            reason = f"`metric_for_best_model` cannot be `{metric}`"
            help = "it is `loss`, or `accuracy` if the held-out rows have `options`"
            raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
        if chosen:
            arguments["compute_metrics"] = lambda found: {"accuracy": found.predictions.mean()}
        with catch_refusals():
            super().__init__(model=model, args=args, **arguments)
        self.model_accepts_loss_kwargs = True  # The loss here is divided by the tokens of a step.
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and getattr(plugin, "fsdp_version", 1) < 2:
            raise TrainError(codes.NOT_SHARDED())

    def set_initial_training_values(self, *arguments: Any) -> tuple[Any, ...]:
        """Count epochs and steps. A finished run has no epochs left, or the loop would do one more step."""
        epochs, *others, steps = super().set_initial_training_values(*arguments)
        return (0 if self.done >= steps else epochs, *others, steps)

    def create_optimizer(self, *arguments: Any, **keywords: Any) -> Any:
        """Create transformers' optimizer."""
        with catch_refusals():
            return super().create_optimizer(*arguments, **keywords)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create transformers' schedule, without a first step at learning rate 0."""
        layerwise = "layerwise" in str(self.args.optim)
        warm = self.args.warmup_steps = self._warm_up(num_training_steps)
        if self.lr_scheduler is None and not layerwise:
            factor = schedule_of(self.args, warm, num_training_steps)
            stepped: Any = optimizer or self.optimizer
            self.lr_scheduler = None if factor is None else LambdaLR(stepped, factor)
        with catch_refusals():
            return super().create_scheduler(num_training_steps, optimizer)

    def gradients(self) -> Iterator[tuple[str, torch.Tensor | None]]:
        """Yield the gradients of all trainable tensors."""
        named = cast(Any, self.model).named_parameters()
        return ((name, p.grad) for name, p in named if p.requires_grad)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute the loss from the logits of trained tokens alone."""
        forward = cast(Any, self.model).get_base_model().forward
        logits, learned = learned_logits(model, forward, inputs)
        loss = loss_of(logits, learned, num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The loss is divided by the tokens of all processes, and DDP averages.
            loss = loss * self.accelerator.num_processes
        return (loss, {"correct": are_likeliest(logits, learned)}) if return_outputs else loss

    def evaluate(self, *arguments: Any, **keywords: Any) -> Any:
        """Evaluate, without changing the random numbers of the training that follows."""
        with torch.random.fork_rng():
            return super().evaluate(*arguments, **keywords)
