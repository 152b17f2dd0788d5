"""TRL's SFTTrainer for an adapter: rates by share, the model's loss, and a stop where it is due."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args
from trl import SFTConfig, SFTTrainer

from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.models.hooks import own_part
from bishare_dsl.train.arguments import catch_refusals, check_sharding
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.folder import find_checkpoint
from bishare_dsl.train.groups import regroup
from bishare_dsl.train.loss import head_is_plain, loss_of_learned

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel


class AdapterTrainer(SFTTrainer):  # type: ignore[misc]
    """Trains the adapter of a model of PEFT; the loop and the checkpoints are transformers', the loss TRL's.

    Args:
        rates: of shares and factors, as `regroup` takes them.
        **arguments: as for SFTTrainer.

    Attributes:
        done: the steps of the checkpoint that training goes on from.
        fused: whether TRL's loss is taken, which has a kernel on a GPU and never makes the logits.
    """

    def __init__(
        self, *, rates: Mapping[str, str], model: PeftModel, args: SFTConfig, **arguments: Any
    ) -> None:
        self._rates, self.done, self._step_loss = rates, 0, torch.zeros(())
        before = [(p, p.data) for p in model.parameters() if p.requires_grad]
        super().__init__(model=model, args=args, **arguments)
        for parameter, data in before:
            if parameter.dtype != data.dtype:  # TRL rounds what trains on a quantised base.
                parameter.data = data.to(parameter.device)
        check_sharding(self)
        asked = args.loss_type != "nll" or args.router_aux_loss_coef or args.label_smoothing_factor
        plain = head_is_plain(cast("PreTrainedModel", model.get_base_model()))
        if asked and not plain:
            reason = "the head has an adapter, which the losses of TRL leave out"
            raise TrainError(codes.BAD_COMBINATION(reason=reason))
        kernel = args.device.type != "cpu" and find_spec("triton") is not None
        self.fused = bool(asked) or (plain and kernel)

    def create_optimizer(self, *arguments: Any, **keywords: Any) -> Any:
        """Make the optimizer as transformers does, with the rates of shares and factors."""
        made = self.optimizer is not None
        with catch_refusals():
            optimizer = super().create_optimizer(*arguments, **keywords)
        if not made:
            adapter = self.model.get_base_model().bishare
            regroup(optimizer, adapter.tensors(), adapter.plan, self._rates)
        return optimizer

    def create_scheduler(self, *arguments: Any, **keywords: Any) -> Any:
        """Make the schedule as transformers does; what transformers refuses is an error of ours."""
        with catch_refusals():
            return super().create_scheduler(*arguments, **keywords)

    def set_initial_training_values(self, *arguments: Any) -> tuple[Any, ...]:
        """Count epochs and steps: no epoch for a run that is through, or the loop would do one more step."""
        epochs, *others, steps = super().set_initial_training_values(*arguments)
        return (0 if self.done >= steps else epochs, *others, steps)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        """Do a part of a step; its loss is kept, without waiting for the device."""
        loss: torch.Tensor = super().training_step(model, inputs, *rest)
        self._step_loss = self._step_loss.to(loss.device) + loss.detach().float().sum()
        return loss

    def take_loss(self) -> float:
        """Return the loss of the step so far, of this process; the next step begins anew."""
        loss, self._step_loss = float(self._step_loss), torch.zeros(())
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Compute the loss by TRL, or of logits that are made only where something is learned."""
        if self.fused or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        forward = self.model.get_base_model().forward
        loss = loss_of_learned(model, forward, inputs, num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # They count the tokens of all, and DDP averages.
            loss = loss * self.accelerator.num_processes
        return loss

    def evaluate(self, *arguments: Any, **keywords: Any) -> Any:
        """Evaluate; whatever that draws, training draws the same as if nothing had been evaluated."""
        with torch.random.fork_rng():
            return super().evaluate(*arguments, **keywords)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: PEFT writes the adapter's."""


class Watch(TrainerCallback):
    """Sees, right before a step is applied, that it may be, and whether any process was asked to stop.

    Attributes:
        trainer: whose steps they are; it is made after the callback.
        asked: whether the user wants the run to stop.
        stopping: whether all processes know that the run is to stop after this step.
    """

    trainer: AdapterTrainer

    def __init__(self) -> None:
        self.asked: Callable[[], bool] = lambda: False
        self.stopping = False

    def on_pre_optimizer_step(
        self, args: Args, state: State, control: Control, **more: Any
    ) -> None:
        accelerator, loss, gradient = self.trainer.accelerator, self.trainer.take_loss(), 0.0
        # A scaled gradient may be infinite; the scaler then leaves the step out, and scales less.
        if accelerator.scaler is None:
            gradient = _norm(more["optimizer"])
        flags = [not math.isfinite(loss), not math.isfinite(gradient), self.asked()]
        if args.world_size > 1:
            together = torch.tensor(flags, dtype=torch.int32, device=args.device)
            flags = [bool(flag) for flag in accelerator.reduce(together, "sum")]
        bad_loss, bad_gradient, self.stopping = flags
        if bad_loss or bad_gradient:
            raise _not_finite(args, state, "loss" if bad_loss else "gradient", (loss, gradient))

    def on_step_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # The last loss is what everybody asks for.
        elif self.stopping:
            control.should_training_stop = True
            # At the end of an epoch more may be logged and evaluated: the checkpoint waits for it.
            control.should_save = not float(state.epoch or 0).is_integer()

    def on_epoch_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        if self.stopping and state.global_step < state.max_steps:
            ended = float(state.epoch or 0).is_integer()
            control.should_save = ended
            control.should_log &= ended
            control.should_evaluate &= ended


def _not_finite(args: Args, state: State, what: str, values: tuple[float, float]) -> TrainError:
    """Say that a step is no number, and what there is to go on from."""
    value = next((value for value in values if not math.isfinite(value)), math.nan)
    try:
        kept = f"`{find_checkpoint(Path(str(args.output_dir)))}` is the last checkpoint"
    except TrainError:
        kept = "there is no checkpoint yet"
    problem = codes.NOT_FINITE(what=what, step=state.global_step + 1, value=value, kept=kept)
    return TrainError(problem)


@torch.no_grad()
def _norm(optimizer: Any) -> float:
    """Compute the norm of the gradient's part that this process has."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = [own_part(p.grad).float() for p in parameters if p.grad is not None]
    norms = [torch.linalg.vector_norm(part) for part in parts]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
