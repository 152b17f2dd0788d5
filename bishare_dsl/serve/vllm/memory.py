"""Replace the tensors of an adapter in vLLM from memory, as a trainer does after each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bishare_dsl.adapter.stored import check_finite
from bishare_dsl.serve.vllm.private import manager_of


def write_adapter(worker: Any, number: int, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors of an adapter into a vLLM worker, without a file.

        llm.collective_rpc(write_adapter, args=(1, model.bishare.tensors()))
        llm.reset_prefix_cache()

    No request for the adapter may be running. Later requests use the new tensors once the prefix cache is
    reset. vLLM must not evict the adapter from host memory, or it would read the folder again.

    Args:
        worker: the worker, passed by vLLM.
        number: the ``lora_int_id`` of an adapter that was loaded from a folder.
        tensors: the tensors by their names in the plan.

    Raises:
        AdapterError: a value is not finite (BS694).
        KeyError: no adapter with this number is loaded, or a tensor is missing.
    """
    values = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    check_finite(f"adapter {number}", values)
    manager_of(worker).write(number, values)
