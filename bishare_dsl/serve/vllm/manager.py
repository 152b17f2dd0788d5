"""The adapter manager in each vLLM worker."""

from __future__ import annotations

import logging
import os
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.hub import adapter_folder
from bishare_dsl.serve.vllm.compact import CompactManager
from bishare_dsl.serve.vllm.folder import is_ours, stamp_of
from bishare_dsl.serve.vllm.plain import plain_folder
from bishare_dsl.serve.vllm.plans import Plans
from bishare_dsl.serve.vllm.private import (
    LRUCacheWorkerLoRAManager,
    get_adapter_absolute_path,
    layers_of,
    linear_layers,
    only_layers,
)
from bishare_dsl.serve.vllm.settings import granted

if TYPE_CHECKING:
    from torch import nn
    from vllm.lora.request import LoRARequest

    from bishare_dsl.serve.vllm.private import LoRAModel

_log = logging.getLogger(__name__)


class WorkerManager(LRUCacheWorkerLoRAManager):
    """vLLM's worker manager, extended to the adapter folders of bishare."""

    _manager_cls: Any
    lora_config: Any

    def __init__(self, *settings: Any, **more: Any) -> None:
        self._read_once: set[int] = set()
        self._in_a_step: set[int] = set()
        self._empty: set[int] = set()
        super().__init__(*settings, **more)

    def create_lora_manager(self, model: nn.Module, vllm_config: Any) -> Any:
        self._base = vllm_config.model_config.model
        if (given := granted(vllm_config)) is not None:
            plans = Plans(vllm_config, given)
            self._manager_cls = partial(CompactManager, plans)
            layers = linear_layers(model, self.lora_config)
            if not plans.grows:  # Wrapping other layers costs time.
                sites = {path for held in plans.held for path in held.plan.terms_of}
                layers = [*layers_of(model, sorted(sites)).keys() & layers]
            self.lora_config = only_layers(self.lora_config, layers)
        return super().create_lora_manager(model, vllm_config)

    def list_adapters(self) -> set[int]:
        # vLLM copies the whole cache here, for each request in each step.
        return set(self._adapter_manager._registered_adapters)

    def _load_adapter(self, lora_request: LoRARequest) -> LoRAModel:
        number = lora_request.lora_int_id
        try:
            lora = self._read(lora_request)
        except Exception as error:
            compact = isinstance(self._adapter_manager, CompactManager)
            if number not in self._in_a_step or not compact:
                raise
            # An error would stop the engine, and all other requests with it.
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
        if isinstance(manager, CompactManager) and (Path(folder).exists() or is_ours(folder)):
            return manager.read(lora_request.lora_int_id, folder)
        if not is_ours(folder):
            return super()._load_adapter(lora_request)
        plain = copy(lora_request)
        plain.lora_path = plain_folder(folder, self._base)
        return super()._load_adapter(plain)

    def _apply_adapters(self, lora_requests: set[LoRARequest]) -> None:
        # Only adapters that were read before can belong to accepted requests.
        self._in_a_step = {r.lora_int_id for r in lora_requests} & self._read_once
        # Workers that share a layer read magnitudes together. A set has another order in each of them.
        ordered = sorted(lora_requests, key=lambda request: request.lora_int_id)
        try:
            super()._apply_adapters([self._once(request) for request in ordered])
        finally:
            self._in_a_step = set()

    def _once(self, request: LoRARequest) -> LoRARequest:
        """Clear a request's reload flag if the adapter is loaded from unchanged files.

        Adapters that failed to load are tried again.

        vLLM repeats the flag with each request for the adapter, in each step.
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
    """Return the folder of a request, fetched from the Hub if necessary. vLLM has no libraries."""
    path = os.path.expanduser(path)  # noqa: PTH111 - it may be a name on the Hub
    if is_ours(path):
        return path
    return str(adapter_folder(path)) if "#" in path else get_adapter_absolute_path(path)
