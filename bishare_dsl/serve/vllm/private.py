"""All uses of private names of vLLM, and all methods of vLLM that the plug-in replaces.

`tests/serve_vllm/test_private.py` compares the code that is relied on with the supported version, so that a
change in vLLM fails a test before it fails a server.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from vllm.config import CUDAGraphMode
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.exceptions import VLLMValidationError
from vllm.forward_context import get_forward_context
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.utils import (
    get_adapter_absolute_path,
    is_in_target_modules,
    parse_fine_tuned_lora_name,
    process_packed_modules_mapping,
)
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.layers.linear import (
    LinearBase,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.platforms import current_platform
from vllm.v1.core import kv_cache_utils
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.worker import lora_model_runner_mixin

from bishare_dsl.convert.peft_config import PREFIX
from bishare_dsl.diagnostics import AdapterError, one_line
from bishare_dsl.diagnostics.codes import adapter as codes

if TYPE_CHECKING:
    from torch import nn

# Names of vLLM that other modules import from here.
__all__ = [
    "LRUCacheLoRAModelManager",
    "LRUCacheWorkerLoRAManager",
    "LoRAModel",
    "get_adapter_absolute_path",
]


class Part(NamedTuple):
    """The location of a site in vLLM's model: part ``number`` of the ``total`` parts of a layer."""

    path: str
    number: int
    total: int


def install_manager(manager: type[Any]) -> None:
    """Replace the adapter manager of vLLM's workers."""
    lora_model_runner_mixin.LRUCacheWorkerLoRAManager = manager


def install_check(start: Callable[[Any], None], check: Callable[[str, str, str], object]) -> None:
    """Check each adapter request by name, folder and base before it reaches the engine.

    The request, also one to load an adapter, is answered with any ValueError of the check, as status 400.

    Args:
        start: called with vLLM's config when an engine that serves adapters starts.
        check: the check.
    """
    begin = InputProcessor.__init__
    validate = InputProcessor._validate_lora

    def begun(self: Any, vllm_config: Any, *others: Any, **more: Any) -> None:
        begin(self, vllm_config, *others, **more)
        if vllm_config.lora_config is not None:
            start(vllm_config)
            _check_loads(check)

    def checked(self: Any, lora_request: Any) -> None:
        validate(self, lora_request)
        if lora_request is not None:
            try:
                check(lora_request.lora_name, lora_request.lora_path, self.model_config.model)
            except ValueError as error:
                raise VLLMValidationError(str(error)) from error

    InputProcessor.__init__ = begun
    InputProcessor._validate_lora = checked


def _check_loads(check: Callable[[str, str, str], object]) -> None:
    """Check the requests of ``/v1/load_lora_adapter``, whose errors in a worker have status 500."""
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels, create_error_response

    validate = OpenAIServingModels._check_load_lora_adapter_request
    if hasattr(validate, "by_bishare"):  # This process has more than one engine.
        return

    async def checked(self: Any, request: Any) -> Any:
        error = await validate(self, request)
        if error is not None:
            return error
        values = request.lora_name, request.lora_path, self.model_config.model
        try:
            await asyncio.to_thread(check, *values)
        except ValueError as refusal:
            return create_error_response(
                message=str(refusal), err_type="BadRequestError", status_code=HTTPStatus.BAD_REQUEST
            )
        return None

    checked.by_bishare = True  # type: ignore[attr-defined]
    OpenAIServingModels._check_load_lora_adapter_request = checked


def install_prefix_key(version: Callable[[str], object]) -> None:
    """Add the version of a folder to the prefix cache's keys, once a request has asked to load it again.

    Otherwise, requests would read what the old version left in the cache under its name and path. Later
    requests for the adapter have the version that the last such request has loaded. From vLLM 0.33 on, only
    the request that loads has the flag; before, those for completions have it, too.

    Args:
        version: returns the version of a folder.
    """
    keys_of = kv_cache_utils._gen_lora_extra_hash_keys
    add = EngineCore.add_lora
    loaded: dict[int, str] = {}

    def remember(lora: Any) -> None:
        if lora.load_inplace:
            folder = os.path.expanduser(lora.lora_path)  # noqa: PTH111 - it may be a name on the Hub
            loaded[lora.lora_int_id] = repr((folder, version(folder)))

    @wraps(add)  # vLLM reads the type of the argument from its signature.
    def added(self: Any, lora_request: Any) -> Any:
        result = add(self, lora_request)
        remember(lora_request)
        return result

    def with_version(request: Any) -> list[Any]:
        keys: list[Any] = keys_of(request)
        lora = request.lora_request
        if lora is None:
            return keys
        if not hasattr(request, "bishare_version"):  # A request has many blocks.
            remember(lora)
            request.bishare_version = loaded.get(lora.lora_int_id)
        if request.bishare_version is None:
            return keys
        return [*keys, ("bishare", request.bishare_version)]

    EngineCore.add_lora = added
    kv_cache_utils._gen_lora_extra_hash_keys = with_version


def layers_of(model: nn.Module, paths: Sequence[str]) -> dict[str, list[Part]]:
    """Return the layers of vLLM's model that contain sites, by name, with the sites in each.

    vLLM merges ``q_proj``, ``k_proj`` and ``v_proj`` into one layer, ``qkv_proj``, and renames some modules
    of the checkpoint.

    Raises:
        AdapterError: there is no layer for a site (BS652).
    """
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    mapper = mapper and mapper.get_rename_mapper()
    packed = {
        part: (whole, number, len(parts))
        for whole, parts in process_packed_modules_mapping(model).items()
        for number, part in enumerate(parts)
    }
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    layers: dict[str, list[Part]] = {}
    for path in paths:
        name, _ = parse_fine_tuned_lora_name(f"{PREFIX}{path}.lora_A.weight", mapper)
        parent, _, kind = name.rpartition(".")
        whole, number, total = packed.get(kind, (kind, 0, 1))
        if (layer := f"{parent}.{whole}") in modules:
            layers.setdefault(layer, []).append(Part(path, number, total))
        elif name in modules:
            layers.setdefault(name, []).append(Part(path, 0, 1))
        else:
            raise AdapterError(codes.LAYER_NOT_ADAPTED(site=path))
    return layers


def manager_of(worker: Any) -> Any:
    """Return the adapter manager of a worker."""
    return worker.model_runner.lora_manager._adapter_manager


def linear_layers(model: nn.Module, config: Any) -> list[str]:
    """Return the names of the linear layers that vLLM's LoRA config selects."""
    packed = process_packed_modules_mapping(model)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, LinearBase)
        and is_in_target_modules(name, config.target_modules, packed)
    ]


def records_steps(config: Any) -> bool:
    """Return whether vLLM records its steps as CUDA graphs."""
    graphs = config.compilation_config.cudagraph_mode is not CUDAGraphMode.NONE
    return bool(graphs and current_platform.is_cuda_alike())


def only_layers(config: Any, layers: Sequence[str]) -> Any:
    """vLLM's LoRA config, restricted to these layers."""
    return replace(config, target_modules=list(layers))


def local_inputs(layer: Any, width: int) -> Tensor | None:
    """Return the indices of a site's inputs in this process's part of a layer; None for all."""
    if layer.input_size == width:
        return None
    # Apply vLLM's own sharding to the column numbers.
    columns: Tensor = layer.slice_lora_a(torch.arange(width).unsqueeze(0))
    return columns.squeeze(0).to(layer.device)


def local_outputs(layer: Any, widths: Mapping[int, int]) -> dict[int, tuple[slice, Tensor | None]]:
    """Return each part's slice of a layer's output, and the indices of its site's outputs (None: all).

    Args:
        layer: vLLM's LoRA wrapper of the layer.
        widths: the output widths of its sites by part number.
    """
    rows = [
        torch.arange(widths[number]).unsqueeze(1) if number in widths else None
        for number in range(layer.n_slices)
    ]
    if layer.tp_size > 1:
        rows = layer.slice_lora_b(rows) if layer.n_slices > 1 else [layer.slice_lora_b(rows[0])]
    outputs = {}
    start = 0
    for number, size in enumerate(layer.output_slices):
        if (part := rows[number]) is not None:
            whole = size == widths[number]
            of_site = None if whole else part.squeeze(1).to(layer.device)
            outputs[number] = (slice(start, start + size), of_site)
        start += size
    return outputs


def local_bias(layer: Any) -> Tensor | None:
    """Return the bias that is in this process's output of a layer when LoRA kernels run; None for none."""
    base = layer.base_layer
    elsewhere = base.skip_bias_add or (isinstance(base, RowParallelLinear) and layer.tp_rank > 0)
    bias: Tensor | None = None if elsewhere else base.bias
    return bias


BLOCK = 1024
"""Columns of a weight that are read at once."""


@torch.inference_mode()
def weight_products(
    layer: Any, a: Tensor, inputs: Tensor | None, path: str
) -> tuple[Tensor, Tensor]:
    """Compute ``|W_i|^2 (d_out)`` and ``W A^T``, as ``(rows, d_out)``, of this process's outputs of a layer.

    Weights are read in blocks of columns. If vLLM has repacked or quantised a weight, its columns are the
    layer's outputs for unit vectors.

    Args:
        layer: vLLM's LoRA wrapper of the layer.
        a: ``(rows, d_in)``, float32, in host memory.
        inputs: indices of this process's inputs; None for all. Otherwise the processes' sums are added.
        path: of a site in the layer, for the message.

    Returns:
        Both are float32 in host memory.

    Raises:
        AdapterError: the weight is quantised and cannot be read (BS623).
    """
    base = layer.base_layer
    method = layer._get_quant_method()
    width = layer.input_size
    a = (a if inputs is None else a[:, inputs.cpu()]).to(layer.device)
    weight: Any = getattr(base, "weight", None)
    plain = isinstance(method, UnquantizedLinearMethod)
    outputs = sum(layer.output_slices)
    stored = plain and weight is not None and weight.shape == (outputs, width)
    squares = torch.zeros(outputs, device=layer.device)
    along = torch.zeros(len(a), outputs, device=layer.device)
    for start in range(0, width, BLOCK):
        columns = slice(start, min(start + BLOCK, width))
        if stored:
            block = weight[:, columns].T.float()
        else:
            block = _columns(base, method, width, columns, path)
            other = block if plain else _columns(base, method, width, columns, path, 0.75)
            # If activations are quantised by a fixed scale, the products are not linear.
            if not torch.allclose(block, other, rtol=0.02, atol=0.02 * float(block.abs().max())):
                raise AdapterError(codes.NOT_DENSE(path=path, found=type(method).__name__))
        squares += block.square().sum(0)
        along += a[:, columns] @ block
    if inputs is not None:
        squares = tensor_model_parallel_all_reduce(squares)
        along = tensor_model_parallel_all_reduce(along)
    return squares.cpu(), along.cpu()


def _columns(
    base: Any, method: Any, width: int, columns: slice, path: str, length: float = 1.0
) -> Tensor:
    """Return columns of a layer's weight as rows ``(columns, d_out)``, from its outputs for unit vectors."""
    count = columns.stop - columns.start
    unit = torch.zeros(count, width, dtype=base.params_dtype, device=current_platform.device_type)
    unit[:, columns].fill_diagonal_(length)
    try:
        rows: Tensor = method.apply(base, unit, None).float() / length
    except Exception as error:
        reason = f"{type(method).__name__}: {one_line(error)}"
        raise AdapterError(codes.NOT_DENSE(path=path, found=reason)) from error
    return rows


def set_kernels(config: Any, name: str, layer: Any, kernels: Any) -> None:
    """Replace vLLM's LoRA kernels in a layer by ``kernels.add_lora_linear``.

    Args:
        config: vLLM's config, in which `layer_of` finds the kernels.
        name: the name of the layer.
        layer: the layer.
        kernels: the kernels of the layer.
    """
    layer.set_mapping(kernels)
    layer._enable_aux_cuda_stream = False  # There, kernels do not get the layer's output.
    config.compilation_config.static_forward_context[f"{name}.bishare"] = kernels


def layer_of(name: str) -> Any:
    """Return the kernels of a layer, during a forward of its model."""
    return get_forward_context().no_compile_layers[f"{name}.bishare"]
