"""transformers' Trainer for an adapter, with the model's own loss of trained tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments

from bishare_dsl.adapter.handle import is_drawn
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.arguments import catch_refusals, check_sharding
from bishare_dsl.train.data.batches import ALLOWED
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.loss import among_options, are_likeliest, learned_logits, loss_of
from bishare_dsl.train.watch import schedule_of

if TYPE_CHECKING:
    from torch import nn

    from bishare_dsl.adapter.handle import Adapter


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
        self._warm_up, self._step_loss = warm_up, torch.zeros(())
        self._right = torch.zeros(2, dtype=torch.long)
        metric = str(args.metric_for_best_model or "loss").removeprefix("eval_")
        known = ["loss", *["accuracy"] * among_options(arguments.get("eval_dataset"))]
        if metric not in known:
            reason = f"`metric_for_best_model` cannot be `{metric}`"
            help = "it is `loss`, or `accuracy` if the held-out rows have `options`"
            raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
        recompute: Any = args.gradient_checkpointing_kwargs
        if (recompute or {}).get("use_reentrant"):
            model.enable_input_require_grads()
        super().__init__(model=model, args=args, **arguments)
        self.model_accepts_loss_kwargs = True  # The loss here is divided by the tokens of a step.
        check_sharding(self)

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

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        """Do a part of a step, and store its loss without waiting for the device."""
        loss: torch.Tensor = super().training_step(model, inputs, *rest)
        self._step_loss = self._step_loss.to(loss.device) + loss.detach().float().sum()
        return loss

    def gradients(self) -> Iterator[tuple[str, torch.Tensor | None]]:
        """Yield the gradients of all trainable tensors; DeepSpeed keeps them elsewhere."""
        named = () if self.is_deepspeed_enabled else cast(Any, self.model).named_parameters()
        return ((name, p.grad) for name, p in named if p.requires_grad)

    def take_loss(self) -> float:
        """Return and reset the loss of the current step in this process."""
        loss, self._step_loss = float(self._step_loss), torch.zeros(())
        return loss

    def check_saving(self) -> None:
        """Check in the first step, with the model partitioned, that every adapter can be saved.

        Raises:
            TrainError: ZeRO-3 would not gather a frozen tensor that no seed reproduces (BS755).
        """
        adapters: Mapping[str, Adapter] = cast(Any, self.model).get_base_model().bishare.adapters
        for name, adapter in adapters.items():
            shapes = {tensor.name: tensor.shape for tensor in adapter.saved_plan.tensors}
            for tensor, value in adapter.tensors().items():
                partitioned = tuple(value.shape) != shapes[tensor]
                if partitioned and not value.requires_grad and not is_drawn(adapter, tensor):
                    reason = (
                        f"ZeRO-3 would not save `{tensor}`, which is frozen, of adapter `{name}`"
                    )
                    help = (
                        "use ZeRO-2; or delete adapters that do not train, and start from a folder "
                        'saved with `frozen="seed"`'
                    )
                    raise TrainError(codes.DEEPSPEED(reason=reason, help=help))

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
        if ALLOWED in inputs and not model.training:
            correct = are_likeliest(logits, learned)
            self._right += torch.stack(
                [correct.sum(), correct.new_tensor(len(correct), dtype=torch.long)]
            ).cpu()
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The loss is divided by the tokens of all processes, and DDP averages.
            loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def evaluate(self, *arguments: Any, **keywords: Any) -> Any:
        """Evaluate, without changing the random numbers of the training that follows."""
        self._right = torch.zeros(2, dtype=torch.long)
        with torch.random.fork_rng():
            metrics = super().evaluate(*arguments, **keywords)
        correct, rows = self.accelerator.reduce(self._right.to(self.args.device), "sum").tolist()
        if rows:
            metrics["eval_accuracy"] = correct / rows
            self.log({"eval_accuracy": correct / rows})
        return metrics
