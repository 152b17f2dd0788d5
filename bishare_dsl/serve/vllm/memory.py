"""Give an adapter that vLLM has loaded other tensors, from memory, as a trainer does after each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bishare_dsl.adapter.stored import check_finite
from bishare_dsl.serve.vllm.private import manager_of


def write_adapter(worker: Any, number: int, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors of an adapter into one of vLLM's workers, without a file.

        llm.collective_rpc(write_adapter, args=(1, model.bishare.tensors()))
        llm.reset_prefix_cache()

    No request for the adapter may be under way. Those that come are answered with the new tensors, once the
    cache of prefixes has forgotten what the old ones computed. vLLM must not drop the adapter from its host's
    cache, for it would read the folder again.

    Args:
        worker: vLLM gives it.
        number: of the adapter, ``lora_int_id`` of its requests; it has been loaded from a folder.
        tensors: of its plan, by name.

    Raises:
        AdapterError: a value is not finite (BS694).
        KeyError: no adapter with this number is loaded, or a tensor is missing.
    """
    found = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    check_finite(f"adapter {number}", found)
    manager_of(worker).write(number, found)
