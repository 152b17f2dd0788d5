"""TRL's SFTTrainer for an adapter, with the model's own loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR
from trl import SFTConfig, SFTTrainer

from bishare_dsl.adapter.handle import is_drawn
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.arguments import catch_refusals, check_sharding
from bishare_dsl.train.data.batches import ALLOWED
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.loss import (
    among_options,
    are_likeliest,
    head_is_plain,
    learned_logits,
    loss_of,
)
from bishare_dsl.train.watch import schedule_of

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

    from bishare_dsl.adapter.handle import Adapter


class AdapterTrainer(SFTTrainer):  # type: ignore[misc]
    """A Trainer for the adapter of a PEFT model, with transformers' loop and checkpoints and TRL's loss.

    Args:
        warm_up: maps the number of steps of a run to its warm-up steps.
        **arguments: as for SFTTrainer.

    Attributes:
        done: the steps of the checkpoint that training resumes from.
        fused: whether TRL's loss is used, which has a GPU kernel and never stores the logits.
    """

    done = 0
    lr_scheduler: Any

    def __init__(
        self, *, warm_up: Callable[[int], int], model: PeftModel, args: SFTConfig, **arguments: Any
    ) -> None:
        self._warm_up, self._step_loss = warm_up, torch.zeros(())
        self._right = torch.zeros(2, dtype=torch.long)
        chosen = among_options(arguments.get("eval_dataset"))
        among = chosen or among_options(arguments["train_dataset"])
        metric = str(args.metric_for_best_model or "loss").removeprefix("eval_")
        if metric not in ("loss", *["accuracy"] * chosen):
            reason = f"`metric_for_best_model` cannot be `{metric}`"
            help = "it is `loss`, or `accuracy` if the held-out rows have `options`"
            raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
        args.remove_unused_columns &= not among
        before = [(p, p.data) for p in model.parameters() if p.requires_grad]
        recompute: Any = args.gradient_checkpointing_kwargs or {"use_reentrant": False}
        super().__init__(model=model, args=args, **arguments)
        if self.is_deepspeed_enabled:
            # TRL sets reentrant checkpointing for ZeRO-3, which gives shared tensors several gradients.
            args.gradient_checkpointing_kwargs = recompute
        for parameter, data in before:
            if parameter.dtype != data.dtype:  # TRL rounds trainable tensors on a quantised base.
                parameter.data = data.to(parameter.device)
        check_sharding(self)
        wants_trl = (
            args.loss_type != "nll" or args.router_aux_loss_coef or args.label_smoothing_factor
        )
        plain = head_is_plain(cast("PreTrainedModel", model.get_base_model()))
        if wants_trl and not plain:
            reason = "the head has an adapter, which the losses of TRL leave out"
            raise TrainError(codes.BAD_COMBINATION(reason=reason))
        if wants_trl and among:
            reason = (
                "rows with `options` are learned by a loss of their own, and not by those of TRL"
            )
            raise TrainError(codes.BAD_COMBINATION(reason=reason))
        self.fused = not among and (bool(wants_trl) or (plain and args.device.type != "cpu"))

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
        """Compute the loss by TRL, or from logits of trained tokens only."""
        if self.fused or (return_outputs and ALLOWED not in inputs):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
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

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card, because PEFT writes the adapter's."""
