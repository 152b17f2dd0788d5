"""The manager of adapters in each of vLLM's workers."""

from __future__ import annotations

import logging
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.adapter.stored import check_finite
from bishare_dsl.hub import adapter_folder
from bishare_dsl.serve.vllm.compact import CompactManager
from bishare_dsl.serve.vllm.expanded import ExpandedManager
from bishare_dsl.serve.vllm.folder import is_ours, stamp_of
from bishare_dsl.serve.vllm.plans import Plans
from bishare_dsl.serve.vllm.private import (
    LRUCacheWorkerLoRAManager,
    get_adapter_absolute_path,
    layers_of,
    linear_layers,
    only_layers,
    tensors_of,
)
from bishare_dsl.serve.vllm.settings import granted

if TYPE_CHECKING:
    from torch import nn
    from vllm.lora.request import LoRARequest

    from bishare_dsl.serve.vllm.private import LoRAModel

_log = logging.getLogger(__name__)


class WorkerManager(LRUCacheWorkerLoRAManager):
    """vLLM's manager in a worker, which reads the adapter folders of bishare too."""

    _manager_cls: Any
    lora_config: Any

    def __init__(self, *settings: Any, **more: Any) -> None:
        self._read_once: set[int] = set()
        self._in_a_step: set[int] = set()
        self._empty: set[int] = set()
        super().__init__(*settings, **more)

    def create_lora_manager(self, model: nn.Module, vllm_config: Any) -> Any:
        if (given := granted(vllm_config)) is None:
            self._manager_cls = ExpandedManager
        else:
            plans = Plans(vllm_config, given)
            self._manager_cls = partial(CompactManager, plans)
            layers = linear_layers(model, self.lora_config)
            if not plans.grows:  # Others cost time, and there is nothing to add.
                sites = {path for held in plans.held for path in held.plan.terms_of}
                layers = [*layers_of(model, sorted(sites)).keys() & layers]
            self.lora_config = only_layers(self.lora_config, layers)
        return super().create_lora_manager(model, vllm_config)

    def list_adapters(self) -> set[int]:
        # vLLM copies the cache to see, and does so for each request of each step.
        return set(self._adapter_manager._registered_adapters)

    def _load_adapter(self, lora_request: LoRARequest) -> LoRAModel:
        number = lora_request.lora_int_id
        try:
            lora = self._read(lora_request)
        except Exception as error:
            if number not in self._in_a_step:
                raise
            # An error would stop the engine, and with it all other requests.
            _log.error(
                "LoRA adapter '%s' cannot be read again. Requests for it that were taken before it was "
                "damaged go on with the base alone: %s",
                lora_request.lora_name,
                error,
            )
            lora = self._adapter_manager.create_empty(number)
            self._empty.add(number)
        else:
            self._empty.discard(number)
        self._read_once.add(number)
        return lora

    def _read(self, lora_request: LoRARequest) -> LoRAModel:
        folder = _place(lora_request.lora_path)
        manager = self._adapter_manager
        compact = isinstance(manager, CompactManager) and Path(folder).exists()
        if compact or is_ours(folder):
            return manager.read(lora_request.lora_int_id, folder)
        lora = super()._load_adapter(lora_request)
        check_finite(folder, tensors_of(lora))
        return lora

    def _apply_adapters(self, lora_requests: set[LoRARequest]) -> None:
        # One that never was read has not been taken by a server either.
        self._in_a_step = {r.lora_int_id for r in lora_requests} & self._read_once
        try:
            super()._apply_adapters({self._once(request) for request in lora_requests})
        finally:
            self._in_a_step = set()

    def _once(self, request: LoRARequest) -> LoRARequest:
        """Return the request, but not to load again what it has loaded already.

        What could not be read is tried again.

        vLLM repeats the wish to replace an adapter with each request for it, in each step.
        """
        if request.lora_int_id in self._empty and not request.load_inplace:
            request = copy(request)
            request.load_inplace = True
        elif request.load_inplace and (
            lora := self._adapter_manager.list_adapters().get(request.lora_int_id)
        ):
            stamp = getattr(lora, "stamp", None)
            if stamp and stamp == stamp_of(_place(request.lora_path)):
                request = copy(request)
                request.load_inplace = False
        return request


def _place(path: str) -> str:
    """Return the place that a request means, fetched where the Hub has it. vLLM knows no libraries."""
    if is_ours(path):
        return path
    return str(adapter_folder(path)) if "#" in path else get_adapter_absolute_path(path)
