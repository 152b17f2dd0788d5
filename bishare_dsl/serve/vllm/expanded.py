"""Expanded mode, for any adapter and plain LoRA: effective factors are computed on activation.

Host memory holds the compact adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.effective import effective_factors
from bishare_dsl.models.inspect import inspect_config
from bishare_dsl.serve.vllm.folder import Stamp, read_for, stamp_of
from bishare_dsl.serve.vllm.frozen import FrozenCache
from bishare_dsl.serve.vllm.private import (
    LoRAModel,
    LRUCacheLoRAModelManager,
    Part,
    layer_weights,
    layers_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from bishare_dsl.models.site import Architecture
    from bishare_dsl.plan import Plan


class StoredLoRA(LoRAModel):
    """An adapter in host memory: its plan and tensors, without effective factors.

    ``layers`` maps vLLM's layers to the adapter's sites. An empty adapter has neither.
    """

    def __init__(
        self,
        lora_id: int,
        stamp: Stamp | None = None,
        plan: Plan | None = None,
        tensors: dict[str, Tensor] | None = None,
        layers: dict[str, list[Part]] | None = None,
    ):
        super().__init__(lora_id, 1, {})
        self.stamp, self.plan = stamp, plan
        self.tensors, self.layers = tensors or {}, layers or {}
        self.sites = {site.path: site for site in plan.sites} if plan else {}


class ExpandedManager(LRUCacheLoRAModelManager):
    """vLLM's adapter manager, extended to bishare's adapters."""

    _wrapping = False

    def __init__(self, *, vllm_config: Any, **settings: Any):
        self._hf_config = vllm_config.model_config.hf_config
        self._frozen = FrozenCache(vllm_config.model_config.model)
        super().__init__(vllm_config=vllm_config, **settings)

    @cached_property
    def base(self) -> Architecture:
        """The shapes of the served model."""
        return inspect_config(self._hf_config)

    def read(self, lora_id: int, folder: str) -> StoredLoRA:
        """Read an adapter folder.

        Raises:
            AdapterError: see `read_for`; or its rank exceeds the server's limit (BS651), or vLLM cannot
                adapt one of its layers (BS652).
        """
        stamp, stored = stamp_of(folder), read_for(folder, self.base)
        plan, limit = stored.plan, self.lora_config.max_lora_rank
        paths = [site.path for site in plan.sites if plan.rows(site.path)]
        layers = layers_of(self.model, paths)
        for path in paths:
            if (rank := plan.rows(path)) > limit:
                raise AdapterError(codes.RANK_OVER_LIMIT(rank=rank, site=path, limit=limit))
        for layer, parts in layers.items():
            if layer not in self.modules:
                raise AdapterError(codes.LAYER_NOT_ADAPTED(site=parts[0].path))
        return StoredLoRA(lora_id, stamp, plan, self._frozen.tensors(stored), layers)

    def plan_of(self, lora_id: int) -> Plan:
        """Return the plan of a loaded adapter of bishare."""
        plan: Plan | None = getattr(self._registered_adapters[lora_id], "plan", None)
        if plan is None:
            raise KeyError(lora_id)
        return plan

    def write(self, lora_id: int, tensors: Mapping[str, Tensor]) -> None:
        """Replace the tensors of a loaded adapter, given by their names in its plan."""
        lora = self._registered_adapters[lora_id]
        lora.tensors, lora.stamp = dict(tensors), None  # It no longer matches its folder.
        if self.deactivate_adapter(lora_id):
            self.activate_adapter(lora_id)

    def create_empty(self, lora_id: int) -> StoredLoRA:
        """Create an adapter that adds nothing."""
        return StoredLoRA(lora_id)

    # Called by vLLM -------------------------------------------------------------------------------

    @property
    def lora_slots(self) -> int:
        # On the CPU, vLLM uses row -1, the last slot, for tokens without an adapter, so requests to
        # the base would get another adapter's terms. An extra row of zeros prevents this.
        slots: int = super().lora_slots
        return slots + (self._wrapping and self.device.type == "cpu")

    def _create_lora_modules(self) -> None:
        self._wrapping = True
        super()._create_lora_modules()
        self._wrapping = False

    def _create_merged_loras_inplace(self, lora_model: LoRAModel) -> None:
        if not isinstance(lora_model, StoredLoRA):
            super()._create_merged_loras_inplace(lora_model)

    def _get_lora_layer_weights(self, lora_model: LoRAModel, module_name: str) -> Any:
        if not isinstance(lora_model, StoredLoRA):
            return super()._get_lora_layer_weights(lora_model, module_name)
        if not (parts := lora_model.layers.get(module_name)):
            return None
        plan, tensors = lora_model.plan, lora_model.tensors
        assert plan is not None
        pairs: list[tuple[Tensor, Tensor] | None] = [None] * parts[0].total
        for part in parts:
            pairs[part.number] = effective_factors(plan, tensors, lora_model.sites[part.path])
        return layer_weights(module_name, pairs, self.lora_config.lora_dtype)
