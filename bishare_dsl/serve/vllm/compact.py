"""Adapters of one plan: vLLM's slots hold its tensors and nothing else, each adapter's once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.inspect import inspect_config
from bishare_dsl.serve.bank import Bank
from bishare_dsl.serve.batch import Group, Step, group_tokens
from bishare_dsl.serve.layer import LayerTerms, Outputs
from bishare_dsl.serve.vllm.folder import Stamp, check_plan, read_for
from bishare_dsl.serve.vllm.private import (
    HAS_TRITON,
    LoRAModel,
    LRUCacheLoRAModelManager,
    layer_of,
    layers_of,
    local_inputs,
    local_outputs,
    set_kernels,
)

if TYPE_CHECKING:
    from bishare_dsl.serve.kernels import KernelTerms


class PackedLoRA(LoRAModel):
    """An adapter that waits in host memory; while it is in a slot, ``packed`` is None."""

    def __init__(self, lora_id: int, stamp: Stamp | None, packed: Tensor | None):
        super().__init__(lora_id, 1, {})
        self.stamp, self.packed = stamp, packed


class CompactManager(LRUCacheLoRAModelManager):
    """vLLM's manager of adapters, with a `Bank` for its slots.

    Args:
        plan_folder: the adapter whose plan is served.
        vllm_config: vLLM's.
        settings: the other arguments of vLLM's manager.
    """

    _wrapping = False
    modules: dict[str, Any]

    def __init__(self, plan_folder: str, *, vllm_config: Any, **settings: Any):
        self.base = inspect_config(vllm_config.model_config.hf_config)
        self.groups: tuple[Group, ...] = ()
        self.tokens = 0
        self._served = read_for(plan_folder, self.base)
        self._vllm_config = vllm_config
        super().__init__(vllm_config=vllm_config, **settings)

    def read(self, lora_id: int, folder: str) -> PackedLoRA:
        """Read an adapter folder.

        Raises:
            AdapterError: as `read_for`; or it has another plan (BS650), or other frozen tensors (BS653).
        """
        stamp, stored = Stamp.of(folder), read_for(folder, self.base)
        check_plan(folder, stored.plan, self._served.plan)
        tensors = stored.tensors()
        for name, value in self.bank.frozen.items():
            if not torch.equal(tensors[name].to(value), value):
                raise AdapterError(codes.OTHER_FROZEN(folder=folder, name=name))
        return PackedLoRA(lora_id, stamp, self.bank.pack(tensors))

    def write(self, lora_id: int, tensors: Mapping[str, Tensor]) -> None:
        """Give a loaded adapter other tensors, those of its plan by name."""
        lora, packed = self._registered_adapters[lora_id], self.bank.pack(tensors)
        lora.stamp = None  # It is no folder's any more.
        if lora_id in self.lora_index_to_id:
            self.bank.put(self.lora_index_to_id.index(lora_id), packed)
        else:
            lora.packed = packed

    def create_empty(self, lora_id: int) -> PackedLoRA:
        """Make an adapter that adds nothing."""
        return PackedLoRA(lora_id, None, None)

    # What vLLM calls ------------------------------------------------------------------------------

    @property
    def lora_slots(self) -> int:
        # While layers are wrapped there are none, so that vLLM makes no room for plain LoRA in them.
        return 0 if self._wrapping else super().lora_slots

    def _create_lora_modules(self) -> None:
        self._wrapping = True
        super()._create_lora_modules()
        self._wrapping = False
        # To those that stand in `modules` vLLM would give factors when an adapter becomes active.
        layers, self.modules = self.modules, {}
        plan = self._served.plan
        self.bank = Bank(
            plan, self.lora_slots, self._served.tensors(), self.lora_config.lora_dtype, self.device
        )
        self.step = Step(self.bank, self.max_num_batched_tokens)
        site = {site.path: site for site in plan.sites if plan.terms_of[site.path]}
        for name, parts in layers_of(self.model, list(site)).items():
            layer, sites = layers[name], {part.number: site[part.path] for part in parts}
            places = local_outputs(layer, {number: site.d_out for number, site in sites.items()})
            outputs = [Outputs(site.path, *places[number]) for number, site in sites.items()]
            inputs = local_inputs(layer, site[parts[0].path].d_in)
            kernels = Kernels(name, self, LayerTerms(self.bank.layout, outputs, inputs))
            set_kernels(self._vllm_config, name, layer, kernels)

    def create_dummy_lora(self, lora_id: int, *_: Any) -> LoRAModel:
        return self.create_empty(lora_id)

    def _create_merged_loras_inplace(self, lora_model: LoRAModel) -> None:
        """Do nothing: there are no factors to put together."""

    def activate_adapter(self, lora_id: int) -> bool:
        newly: bool = super().activate_adapter(lora_id)
        if newly:
            lora = self._registered_adapters[lora_id]
            self.bank.put(self.lora_index_to_id.index(lora_id), lora.packed)
            lora.packed = None
        return newly

    def _deactivate_adapter(self, lora_id: int) -> None:
        if lora_id in self.lora_index_to_id and lora_id in self._registered_adapters:
            slot = self.lora_index_to_id.index(lora_id)
            self._registered_adapters[lora_id].packed = self.bank.take(slot)
        super()._deactivate_adapter(lora_id)

    def _set_adapter_mapping(self, mapping: Any) -> None:
        super()._set_adapter_mapping(mapping)
        slot = {lora_id: index for index, lora_id in enumerate(self.lora_index_to_id)}
        slots = [slot[lora_id] if lora_id > 0 else -1 for lora_id in mapping.index_mapping]
        if self.device.type == "cpu":
            self.groups, self.tokens = group_tokens(self.bank, slots), len(slots)
        else:
            self.step.write(slots)


class Kernels:
    """What a layer calls in the place of vLLM's kernels for plain LoRA.

    On a CPU the tokens are grouped by their adapters. Elsewhere a step may be recorded and run again: it is
    for Triton's kernels, or in torch.
    """

    def __init__(self, name: str, manager: CompactManager, terms: LayerTerms):
        self.name, self._manager, self._terms = name, manager, terms
        self._kernels: KernelTerms | None = None
        if manager.device.type == "cuda" and HAS_TRITON:
            from bishare_dsl.serve.kernels import KernelTerms

            with suppress(ValueError):  # Of features that do not lie side by side, in torch.
                self._kernels = KernelTerms(manager.bank, terms)

    def add_lora_linear(self, y: Tensor, x: Tensor, *_: Any, **__: Any) -> None:
        """Add what the adapters of the batch make of ``x (tokens, d_in)`` to ``y (tokens, d_out)``."""
        if torch.compiler.is_compiling():
            torch.ops.bishare.add_terms(y, x, self.name)
        else:
            self.add(y, x)

    def add(self, y: Tensor, x: Tensor) -> None:
        """Do the same outside a compiled graph."""
        manager = self._manager
        if self._kernels is not None:
            self._kernels.add(y, x, manager.step)
        elif manager.device.type == "cpu":
            self._terms.add(y[: manager.tokens], x[: manager.tokens], manager.groups)
        else:
            self._terms.add(y, x, manager.step.groups(len(x)))


@torch.library.custom_op("bishare::add_terms", mutates_args=("y",))
def add_terms(y: Tensor, x: Tensor, layer: str) -> None:
    """Run `Kernels.add` of a layer as one opaque step of a compiled graph."""
    layer_of(layer).add(y, x)


@add_terms.register_fake
def _(y: Tensor, x: Tensor, layer: str) -> None:
    return None
