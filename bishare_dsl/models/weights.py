"""Read and write the weights of linear maps, whatever their layout.

A linear layer stores one matrix, ``(d_out, d_in)``. GPT-2's ``Conv1D`` and an embedding, whose input is a
one-hot vector of the vocabulary, store it transposed. A quantised layer stores an encoding. Experts store one
tensor for all of them, in which gate and up may be one matrix. No other module knows these layouts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes.adapter import NOT_DENSE
from bishare_dsl.models.hooks import full_shape, gather, is_sharded_tensor, resident_tensor
from bishare_dsl.models.site import block_of

_EXPERTS = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "up_proj": ("up_proj",),
    "down_proj": ("down_proj",),
}
"""The parameters of experts, and the maps in each."""

_LAYOUTS = {"Llama4TextExperts": (True, True), "LongcatFlashExperts": (True, False)}
"""Layouts of classes without attributes for them: whether gate and up are concatenated, and transposed."""


@dataclass(frozen=True, eq=False)
class Weight:
    """The location of the weight of a linear map from ``d_in`` to ``d_out`` features.

    Attributes:
        path: the path of the site. For an expert, as if the expert were a module:
            ``model.layers.0.mlp.experts.3.up_proj``.
        owner: the path of the ``module`` that has the parameter.
        parameter: the name of the parameter there.
        expert: the index of the matrix in a parameter that has several, else None.
        outputs: the rows of the matrix ``(outputs, d_in)`` that belong to the map, or None for all.
        transposed: whether the parameter is stored as ``(d_in, d_out)``.
    """

    path: str
    owner: str
    module: nn.Module
    d_in: int
    d_out: int
    parameter: str = "weight"
    expert: int | None = None
    outputs: slice | None = None
    transposed: bool = False

    def part(self, stored: torch.Tensor) -> torch.Tensor:
        """Return a view of the map's matrix ``(d_out, d_in)``, from a tensor like the parameter."""
        matrix = stored if self.expert is None else stored[self.expert]
        matrix = matrix.mT if self.transposed else matrix
        return matrix if self.outputs is None else matrix[self.outputs]

    def stored(self) -> torch.Tensor | None:
        """Return the tensor that holds the parameter's values, or None if it has a `replacement`."""
        return resident_tensor(self.module, self.parameter)

    def matrix(self) -> torch.Tensor:
        """Return the weight ``(d_out, d_in)``. Writing into it changes the model.

        Check `replacement` first.
        """
        stored = self.stored()
        assert stored is not None, self.path
        return self.part(stored.detach())

    @property
    def looks_up(self) -> bool:
        """Return whether the module is an embedding, whose input is indices instead of features."""
        return isinstance(self.module, nn.Embedding)

    def is_computed(self) -> bool:
        """Return whether a dense weight is computed from other tensors, as with pruning or weight norm."""
        dense = self.transposed or isinstance(self.module, nn.Linear)
        return dense and self.parameter not in self.module._parameters

    def replacement(self) -> str | None:
        """Return the reason why there is no dense weight to write to, or None if there is one."""
        kind = type(self.module).__name__
        parameter = self.module._parameters.get(self.parameter)
        if parameter is None:
            return kind
        shape = full_shape(parameter)
        whole = len(shape) == (2 if self.expert is None else 3)
        fits = whole and tuple(self.part(torch.empty(shape, device="meta")).shape) == (
            self.d_out,
            self.d_in,
        )
        if not fits or not _is_float(parameter.dtype):
            return f"{kind}, {str(parameter.dtype).removeprefix('torch.')}"
        dense = type(parameter.data) is torch.Tensor or is_sharded_tensor(parameter)
        return None if dense else type(parameter.data).__name__

    def dense(self) -> torch.Tensor:
        """Return the ``(d_out, d_in)`` matrix that a quantised weight encodes.

        Raises:
            AdapterError: the weight cannot be dequantised (BS623).
        """
        for tensor in self._dequantize_attempts():
            fits = getattr(tensor, "shape", None) == (self.d_out, self.d_in)
            if fits and _is_float(tensor.dtype):
                dense: torch.Tensor = tensor.detach()
                return dense
        raise AdapterError(NOT_DENSE(path=self.path, found=self.replacement()))

    def values(self) -> torch.Tensor:
        """Return W ``(d_out, d_in)``: the weight itself, or what it encodes; see `matrix` and `dense`."""
        return self.matrix() if self.replacement() is None else self.dense()

    def _dequantize_attempts(self) -> Iterator[Any]:
        if callable(dequantize := getattr(self.module, "dequantize", None)):
            yield dequantize()
        parameter = self.module._parameters.get(self.parameter)
        # Every tensor has this method; plain integers would be returned unchanged.
        if parameter is not None and type(parameter).dequantize is not torch.Tensor.dequantize:
            yield parameter.dequantize()
        if self.expert is None and not self.looks_up:
            yield from self._probe_with_identity()

    def _probe_with_identity(self) -> Iterator[Any]:
        """Yield the layer's outputs for unit vectors, which are its weight in any encoding."""
        module = self.module
        kind = _kind(module)
        held = next(iter([*module.parameters(), *module.buffers()]), None)
        bias = getattr(module, "bias", None)
        training = module.training
        module.training = True  # In eval mode bitsandbytes repacks four bits, with rounding.
        try:
            for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
                unit = torch.eye(
                    self.d_in, dtype=dtype, device=None if held is None else held.device
                )
                try:
                    with torch.no_grad():
                        outputs = kind.forward(module, unit)
                        yield (
                            outputs if bias is None else outputs - bias.to(outputs)
                        ).T.contiguous()
                except Exception:  # noqa: BLE001 - it may not run here, or in this dtype
                    continue
        finally:
            module.training = training


def products(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Multiply rows ``(..., n, d_in)`` by a linear layer's weight: ``(..., n, d_out)``, without its bias."""
    if (weight := _plain_weight(layer)) is not None:
        return x.to(weight.dtype) @ (weight if _is_conv1d(layer) else weight.mT)
    # Quantised, offloaded or sharded: the layer is called, with a row of zeros for its bias.
    rows = torch.nn.functional.pad(x, (0, 0, 0, 1))
    # A layer that is a region runs now, so its weight is here. Others load theirs when they are called:
    # torch multiplies by a weight on the meta device without an error.
    kind: Any = type(layer)
    code = getattr(getattr(kind, "bishare_changes", None), "code", None)
    y: torch.Tensor = layer(rows) if code is None else kind.bishare_base.forward(layer, rows)
    return y[..., :-1, :] - y[..., -1:, :]


def bias_of(layer: nn.Module, like: torch.Tensor) -> torch.Tensor | None:
    """Return a linear layer's bias in the dtype and on the device of a tensor; None without a bias."""
    bias: torch.Tensor | None = getattr(layer, "bias", None)
    if bias is not None and bias.is_meta:  # Offloaded: only a call of the layer loads it.
        widths = linear_widths(layer)
        assert widths is not None
        with torch.no_grad():
            bias = layer(like.new_zeros(1, widths[0])).squeeze(0)
    return None if bias is None else bias.to(like)


def row_norms(layer: nn.Module) -> torch.Tensor:
    """Return the lengths of the rows of a linear layer's ``W (d_out, d_in)``, in float32 or wider.

    Raises:
        AdapterError: it is quantised, and cannot be dequantised (BS623).
    """
    weight = _plain_weight(layer)
    across = 0 if _is_conv1d(layer) else 1
    if weight is None:
        (linear,), across = weights_in(_kind(layer).__name__, layer), 1
        weight = linear.values()
        if weight.is_meta:  # On disk: a call of the layer loads it.
            weight = products(layer, torch.eye(linear.d_in, dtype=weight.dtype)).mT
    dtype = torch.promote_types(weight.dtype, torch.float32)
    norms: Any = torch.linalg.vector_norm(weight, dim=across, dtype=dtype)
    whole: torch.Tensor = gather(norms)
    return whole


def _plain_weight(layer: nn.Module) -> torch.Tensor | None:
    """Return the weight of a layer that has one in its own memory; None where something stands for it."""
    # By its key: during a forward, ZeRO-3 gathers a parameter that is read so.
    weight = layer._parameters["weight"] if "weight" in layer._parameters else None  # noqa: SIM401
    known = isinstance(layer, nn.Linear) or _is_conv1d(layer)
    fits = known and type(weight) is nn.Parameter and _is_float(weight.dtype)
    return weight if fits and weight is not None and not weight.is_meta else None


def weights_in(path: str, module: nn.Module) -> list[Weight]:
    """Find the linear maps whose weights a module holds itself."""
    if (widths := linear_widths(module)) is not None:
        return [Weight(path, path, module, *widths, transposed=_is_conv1d(module))]
    if block_of(path) is None and (widths := _embedding_widths(module)) is not None:
        return [Weight(path, path, module, *widths, transposed=True)]
    return [*_experts(path, module)] if module._parameters else []


def linear_widths(module: nn.Module) -> tuple[int, int] | None:
    """Return ``(d_in, d_out)`` of a linear-like module, or None."""
    if _is_conv1d(module):
        return full_shape(module.weight)  # type: ignore[arg-type, return-value]
    d_in = getattr(module, "in_features", None)
    d_out = None if d_in is None else getattr(module, "out_features", None)
    if not (isinstance(d_in, int) and isinstance(d_out, int) and d_in and d_out):
        return None  # A width of 0, as MobileBERT's predictions may have, is not a map.
    return (d_in, d_out) if _is_linear(module, d_in, d_out) else None


def _embedding_widths(module: nn.Module) -> tuple[int, int] | None:
    """Return ``(vocabulary, width)`` of an embedding, possibly with an ``embed_scale``, or None."""
    if not isinstance(module, nn.Embedding) or module.max_norm is not None or module.sparse:
        return None
    kind = _kind(module)
    scaled = isinstance(getattr(module, "embed_scale", None), (int, float, torch.Tensor))
    if kind.forward is not nn.Embedding.forward and not scaled:
        return None
    return module.num_embeddings, module.embedding_dim


def _experts(path: str, module: nn.Module) -> Iterator[Weight]:
    """Find the maps of experts in the layout of transformers 5, with parameters of shape ``(experts, ...)``.

    The modules have attributes for the layout: ``is_transposed``, and ``is_concatenated`` if gate and up
    are not interleaved. Classes in `_LAYOUTS` lack them.
    """
    kind = _kind(module)
    concatenated, transposed = _LAYOUTS.get(
        kind.__name__,
        (getattr(module, "is_concatenated", None), getattr(module, "is_transposed", None)),
    )
    if not isinstance(concatenated, bool) or not isinstance(transposed, bool):
        return
    parameters = {name: module._parameters.get(name) for name in _EXPERTS}
    shapes = {name: full_shape(tensor) for name, tensor in parameters.items() if tensor is not None}
    if any(len(shape) != 3 for shape in shapes.values()):
        return
    for expert in range(min((shape[0] for shape in shapes.values()), default=0)):
        for parameter, shape in shapes.items():
            d_in, height = shape[1:] if transposed else reversed(shape[1:])
            names = _EXPERTS[parameter]
            d_out = height // len(names)
            turns = len(names)
            for i, name in enumerate(names):
                site = f"{path}.{expert}.{name}"
                rows = slice(i * d_out, (i + 1) * d_out) if concatenated else slice(i, None, turns)
                outputs = rows if turns > 1 else None
                yield Weight(
                    site, path, module, d_in, d_out, parameter, expert, outputs, transposed
                )


def _kind(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module without an adapter."""
    kind: type[nn.Module] = getattr(type(module), "bishare_base", type(module))
    return kind


def _is_float(dtype: torch.dtype | None) -> bool:
    return dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _is_conv1d(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return False
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _is_linear(module: nn.Module, d_in: int, d_out: int) -> bool:
    """Return whether a module with the widths of a linear layer also behaves like one.

    A custom class may return a tuple (a router), or split its input into groups. Classes of quantisers are
    trusted, because they may run on their device only.
    """
    kind = _kind(module)
    if kind.forward is nn.Linear.forward:
        return True
    models_own = kind.__module__.startswith(("transformers.models.", "transformers_modules."))
    if not models_own and not isinstance(module, nn.Linear):
        return True
    twin = nn.Module.__new__(kind)  # without values, so that running it is free
    twin.__dict__ = dict(vars(module))
    for attribute in ("_parameters", "_buffers"):
        tensors = vars(module)[attribute].items()
        # Not `t.to`, which would move a quantiser's state off the module's tensor.
        twin.__dict__[attribute] = {
            n: t if t is None else torch.empty(full_shape(t), dtype=t.dtype, device="meta")
            for n, t in tensors
        }
    dtype = next((t.dtype for t in twin.parameters() if t.is_floating_point()), None)
    try:
        with torch.no_grad():
            y = kind.forward(twin, torch.empty(1, 1, d_in, device="meta", dtype=dtype))
    except Exception:  # noqa: BLE001 - a class may do anything with unexpected input
        return not models_own
    return isinstance(y, torch.Tensor) and tuple(y.shape) == (1, 1, d_out)
