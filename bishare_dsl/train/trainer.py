"""TRL's SFTTrainer, for adapters: its loss where that is the model's, what it logs, and what it saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer
from trl import SFTTrainer

from bishare_dsl.adapter.files import read_adapter
from bishare_dsl.adapter.handle import Handle
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.models.hooks import accept_quantised_base, is_sharded_tensor, shard_like
from bishare_dsl.train.arguments import catch_refusals
from bishare_dsl.train.checkpoint import broken_checkpoint
from bishare_dsl.train.counts import Counts
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.groups import regroup
from bishare_dsl.train.guard import Guard
from bishare_dsl.train.loss import (
    fused_head_is_right,
    has_plain_head,
    only_learned,
    skips_prompts,
    takes_only_learned,
)
from bishare_dsl.train.state import keep_generators

if TYPE_CHECKING:
    from torch import nn

    from bishare_dsl.train.request import Settings


class _Logging(Trainer):
    """Stands between SFTTrainer, which adds to what is logged, and Trainer, which logs it."""

    counts: Counts

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log our own counts, which a resumed run goes on with, in the place of theirs."""
        for name in ("num_tokens", "eval_num_tokens"):
            logs.pop(name, None)
        if "loss" in logs:
            logs |= self.counts.log_values(self.state.global_step)
        if "train_loss" in logs:
            logs["train_loss"] = self.counts.mean_loss()
        super().log(logs, start_time)


class AdapterTrainer(SFTTrainer, _Logging):  # type: ignore[misc]
    """Trains the adapter of a model; the loop is transformers', the loss TRL's.

    Args:
        settings: of the run.
        **arguments: as for SFTTrainer.

    Attributes:
        counts: losses, tokens and time so far.
        done: the steps of the checkpoint that training goes on from.
        fused: whether TRL's loss is taken, which never makes the logits.
        sparse: whether the model's loss is taken, of logits made only where something is learned.
        guard: holds the adapter as it was when its loss was last a number.
        before_saving: called before a checkpoint is begun.
    """

    def __init__(self, *, settings: Settings, **arguments: Any) -> None:
        model, self._settings, self.done = arguments["model"], settings, 0
        self.guard = Guard()
        self.before_saving: Callable[[], None] = lambda: None
        own = adapter_of(model)
        assert own is not None
        before = [(tensor, tensor.data) for tensor in own.tensors().values()]
        with accept_quantised_base(model):
            super().__init__(**arguments)
        for tensor, data in before:
            if tensor.dtype != data.dtype:  # TRL rounds what trains on a quantised base.
                tensor.data = data.to(tensor.device)
        self.counts = Counts(self.accelerator)
        asked = arguments["args"].loss_type != "nll" or arguments["args"].router_aux_loss_coef
        smooths = arguments["args"].label_smoothing_factor  # By all logits.
        self.sparse = not (smooths or asked or skips_prompts(model)) and takes_only_learned(model)
        self.fused = not self.sparse and has_plain_head(model) and fused_head_is_right(model)
        if asked and not self.fused:
            reason = "TRL's loss is not this model's, so `loss_type` and `router_aux_loss_coef` are not there"
            raise TrainError(codes.BAD_COMBINATION(reason=reason))
        if arguments["args"].kept_elsewhere:
            self.accelerator.device_placement = False

    @property
    def adapter(self) -> Handle:
        """The adapter, as ``model.bishare``."""
        found = adapter_of(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
        assert found is not None
        return found

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What the optimizer changes."""
        assert self.optimizer is not None
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def create_optimizer(self, *arguments: Any) -> Any:
        """Make the optimizer as transformers does, with rates and decays that shares have of their own."""
        with catch_refusals():
            optimizer = super().create_optimizer(*arguments)
            adapter = self.adapter
            regroup(optimizer, adapter.tensors(), adapter.plan, self._settings)
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
        """Do a part of a step, and count it."""
        loss: torch.Tensor = super().training_step(model, inputs, *rest)
        self.guard.see(loss)
        self.counts.add(loss, inputs)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **more: Any
    ) -> Any:
        """Compute the loss by TRL's fused head, or by the model where that is faster or another loss."""
        if self.sparse:
            inputs = only_learned(inputs)
        elif self.fused:
            return super().compute_loss(model, inputs, *rest, **more)
        return Trainer.compute_loss(self, model, inputs, *rest, **more)

    def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        """Evaluate; whatever that draws, training draws the same as if nothing had been evaluated."""
        with self.counts.pause(), keep_generators(self.args.device):
            found: dict[str, float] = super().evaluate(*arguments, **keywords)
        return found

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter. Where FSDP2 has spread it, every process has to call this."""
        folder = Path(output_dir or self.folder)
        sharded = any(map(is_sharded_tensor, self.adapter.tensors().values()))
        if sharded or self.args.should_save:
            self.adapter.save_pretrained(folder)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none, for an adapter has its own. TRL asks for it whenever a checkpoint is begun."""
        self.before_saving()

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Load the values of the adapter that are in a folder.

        Raises:
            TrainError: they are of another plan (BS743).
        """
        stored = read_adapter(folder)
        if stored.plan.digest != self.adapter.plan.digest:
            raise broken_checkpoint(folder, ValueError("its adapter has another plan"))
        values = stored.tensors()
        for name, tensor in self.adapter.tensors().items():
            tensor.copy_(shard_like(values[name], tensor))


def adapter_of(model: nn.Module) -> Handle | None:
    """Return the adapter of a model; None where it has none."""
    found = getattr(model, "bishare", None)
    return found if isinstance(found, Handle) else None
