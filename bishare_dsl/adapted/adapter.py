"""An adapter of a model: its plan, its settings, and its tensors by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bishare_dsl.batched.bank import Bank
from bishare_dsl.diagnostics import AdapterError, Problem
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.initial.values import draw_tensor
from bishare_dsl.models.hooks import resident_tensor
from bishare_dsl.plan import Plan
from bishare_dsl.plan.names import attribute
from bishare_dsl.plan.together import plan_of_shares, scaled_plan, share_names
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.parts import AdapterParts, PlanCode

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True, eq=False)
class DisabledShares:
    """An open block that disables shares of adapters."""

    names: frozenset[str]


@dataclass(eq=False)
class Adapter:
    """An adapter of a model: its plan and settings, and the modules that contain its tensors."""

    name: str
    plan: Plan
    spec_text: str
    seed: int
    compiled: PlanCode
    parts: AdapterParts
    sources: Mapping[str, tuple[OwnedTensors, int]]
    """The module of each tensor and its index there, by the tensor's name in the plan."""
    bank: tuple[Bank, int] | None = None
    config: Any = None
    """PEFT's config, also in ``model.peft_config``; None for several adapters running together."""
    scale: float = 1.0
    """The multiplier of all terms, relative to the trained plan."""
    disabled: tuple[DisabledShares, ...] = ()
    """The open blocks that disable some of its shares."""
    trained: Plan | None = None
    """The plan it was trained with, if it differs from the running plan."""
    drawn: Collection[str] | None = None
    """The frozen tensors that the seed reproduces, of an adapter that was read; None for all."""

    @property
    def saved_plan(self) -> Plan:
        """The plan to save, of all shares and without the scale."""
        return self.trained or self.plan

    @property
    def scaled_plan(self) -> Plan:
        """The plan of all shares, with the scale."""
        return self.saved_plan if self.scale == 1 else scaled_plan(self.saved_plan, self.scale)

    @property
    def running_plan(self) -> Plan:
        """The plan with the scale, and without the disabled shares."""
        plan = self.scaled_plan
        if not self.disabled:
            return plan
        enabled = set(share_names(plan))
        for block in self.disabled:
            enabled -= block.names
        return plan_of_shares(plan, enabled)

    def scale_problems(self) -> list[Problem]:
        """Warn if saving leaves out a scale (BS684)."""
        if self.scale == 1:
            return []
        return [codes.SCALE_NOT_SAVED(name=self.name, scale=self.scale)]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the parameters themselves by their names in the plan, each once.

        With accelerate's offload, return the tensors that hold the values.
        """
        values = {}
        for name in self.plan.tensor:
            store, number = self.sources[name]
            value = resident_tensor(store, store.attributes[number])
            assert value is not None, name
            values[name] = value
        return values

    @property
    def trains(self) -> bool:
        """Whether any of its tensors trains now."""
        return any(parameter.requires_grad for parameter in self.parts.tensors().values())

    @property
    def dropout_active(self) -> bool:
        """Whether dropout is active in its terms."""
        return any(store.dropout_active for _, store in self.parts.owned)

    def set_trainable(self, trainable: bool) -> None:
        """Enable or disable training of the tensors that the spec trains."""
        for name, (store, number) in self.sources.items():
            parameter = store.get_parameter(store.attributes[number])
            parameter.requires_grad_(trainable and self.plan.tensor[name].trainable)


def adapter_keys(model: nn.Module, adapter: Adapter) -> dict[str, str]:
    """Return the names of an adapter's tensors in the plan, by their keys in the model's `state_dict`."""
    # torch omits the wrappers for sharding and for activation checkpointing.
    wrappers = re.compile(r"\b_(checkpoint|fsdp)_wrapped_module\.")
    paths = {id(module): wrappers.sub("", path) for path, module in model.named_modules()}
    return {
        f"{paths[id(store)]}.{attribute(name)}": name
        for name, (store, _) in adapter.sources.items()
    }


def values_in(
    state_dict: Mapping[str, torch.Tensor], model: nn.Module, adapter: Adapter
) -> dict[str, torch.Tensor]:
    """Return an adapter's values by the names in the plan, from the gathered `state_dict` of its model.

    With ZeRO-3, transformers leaves out frozen tensors. Their seed reproduces those that this process does
    not hold, unless the adapter came from a folder that stores them.

    Raises:
        AdapterError: a tensor that trains is missing (BS617), as with keys of a wrapper of the model.
    """
    held = adapter.tensors()
    values: dict[str, torch.Tensor] = {}
    for key, name in adapter_keys(model, adapter).items():
        tensor = adapter.saved_plan.tensor[name]
        if key not in state_dict and held[name].requires_grad:
            reason = f"`state_dict` has no key `{key}`"
            raise AdapterError(codes.NO_VALUES(name=name, reason=reason))
        value = state_dict.get(key)
        if value is None or value.is_meta:  # With accelerate's offload, the values are elsewhere.
            value = held[name].detach()
        partitioned = key not in state_dict and tuple(value.shape) != tensor.shape
        redrawn = partitioned and is_drawn(adapter, name)
        values[name] = draw_tensor(tensor, adapter.seed) if redrawn else value
    return values


def is_drawn(adapter: Adapter, name: str) -> bool:
    """Return whether `draw_tensor` reproduces a tensor that the adapter's folder does not store."""
    tensor = adapter.saved_plan.tensor[name]
    record = getattr(adapter.config, "last_record", None)
    drawn = adapter.drawn if record is None else record.ways("seed")
    return tensor.drawn and not tensor.trainable and (drawn is None or name in drawn)


def check_unscaled(adapters: Sequence[Adapter], action: str, help: str) -> None:
    """Check that no adapter has a magnitude, because it is not a sum of terms.

    Args:
        adapters: of a model.
        action: the unsupported action, with ``{}`` for the adapter's name.
        help: an alternative.

    Raises:
        AdapterError: an adapter has one (BS675).
    """
    names = [adapter.name for adapter in adapters if adapter.saved_plan.has_magnitudes]
    if names:
        raise AdapterError(codes.SCALES_BASE(action=action.format(names[0]), help=help))
