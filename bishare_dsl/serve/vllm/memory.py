"""Replace the tensors of an adapter in vLLM from memory, as a trainer does after each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bishare_dsl.diagnostics import AdapterError, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.folder.contents import tensor_problems, wanted_values
from bishare_dsl.folder.stored import check_finite, entries_of
from bishare_dsl.plan.names import attribute
from bishare_dsl.serve.vllm.compact import CompactManager
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
        AdapterError: a value is not finite (BS694), the tensors are not the plan's (BS609 to BS612), or the
            server is not in compact mode (BS658); nothing was written.
        KeyError: no adapter of bishare with this number is loaded.
    """
    values = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    check_finite(f"adapter {number}", values)
    manager = manager_of(worker)
    if not isinstance(manager, CompactManager):
        problem = "`write_adapter` needs compact mode"
        raise AdapterError(codes.BAD_SERVER_SETTING(setting="additional_config", problem=problem))
    wanted = wanted_values(manager.plan_of(number))
    entries = entries_of({attribute(name): tensor for name, tensor in values.items()})
    raise_errors(AdapterError, list(tensor_problems(wanted, entries))[:10])
    manager.write(number, values)
