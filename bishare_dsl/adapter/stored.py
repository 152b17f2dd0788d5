"""How a tensor is stored: whole, rounded, quantised, in parts, or not at all if the seed reproduces it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, Literal, cast, get_args

import torch
from torch.nn.functional import pad

from bishare_dsl.adapter.config import AdapterConfig, DrawnTensor, Entries, attribute_in, part_name
from bishare_dsl.adapter.initial import draw_tensor
from bishare_dsl.diagnostics import AdapterError, Problem
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.effective import effective_factors
from bishare_dsl.export.lora import product_norm
from bishare_dsl.plan import Plan
from bishare_dsl.plan.bits import BITS, GROUP, QUANTISED, SCALES, selecting

Frozen = Literal["seed", "tensors", "base"]
"""How frozen tensors are saved; ``"base"`` is ``"seed"``, and omits those that loading recomputes."""

Form = Literal["bfloat16", "int8", "int4"]
"""Types in a file other than the tensors' own: rounded, or in groups with scales."""

Rounded = Form | torch.dtype | None
"""The type of float32 tensors in the file, or its name; None to keep float32."""

_SCALES = (torch.bfloat16, torch.float16, torch.float32)

_MEASURED = 32
"""Modules of a kind by which the loss is measured."""


def form_of(dtype: Rounded) -> Form | None:
    """Return the name of a type for the file; None keeps the tensors' own.

    Raises:
        AdapterError: unsupported type (BS662).
    """
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in ("float32", *get_args(Form)):
        raise AdapterError(codes.UNKNOWN_DTYPE(dtype=dtype))
    return None if name == "float32" else cast(Form, name)


def round_tensor(tensor: torch.Tensor, form: Form | None) -> torch.Tensor:
    """Round a float32 tensor for a file of bfloat16; otherwise return it unchanged."""
    return tensor.bfloat16() if form == "bfloat16" and tensor.dtype == torch.float32 else tensor


def widen_tensor(tensor: torch.Tensor, dtype: Rounded) -> torch.Tensor:
    """Undo the type change of `round_tensor`."""
    return tensor.float() if dtype and tensor.dtype == torch.bfloat16 else tensor


def tensor_of(entry: Mapping[str, Any]) -> torch.Tensor:
    """Convert an entry of a file (`Entries`) to a tensor.

    This copies the data: the file's memory is not aligned as torch's, and kernels would round differently.

    Raises:
        ValueError: torch cannot compute with its type.
    """
    name = entry["dtype"].lower().replace("f", "float").replace("i", "int").replace("u", "uint")
    if "_" in name or (dtype := getattr(torch, name, None)) is None:  # Such as `F8_E5M2`.
        raise ValueError(f"torch does not sum values of type {entry['dtype']}")
    if 0 in entry["shape"]:  # torch rejects an empty buffer.
        return torch.empty(entry["shape"], dtype=dtype)
    return torch.frombuffer(entry["data"], dtype=dtype).view(entry["shape"]).clone()


def entries_of(tensors: Mapping[str, torch.Tensor]) -> Entries:
    """Return the entries of tensors by key; the data are views, not copies."""
    entries = {}
    for key, tensor in tensors.items():
        name = str(tensor.dtype).removeprefix("torch.").replace("float", "f")
        dtype = name.replace("uint", "u").replace("int", "i").upper()
        data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        entries[attribute_in(key)] = {"dtype": dtype, "shape": [*tensor.shape], "data": data}
    return entries


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[Problem]:
    """Warn of non-finite values (BS660)."""
    values = {name: tensor for name, tensor in tensors.items() if not tensor.is_meta}
    # A sum is finite only if all values are, and is four times faster than testing each value.
    unsure = {name: t for name, t in values.items() if not math.isfinite(t.sum().item())}
    names = [name for name, tensor in unsure.items() if not torch.isfinite(tensor).all()]
    return [codes.NOT_FINITE_TENSORS(count=len(names), name=names[0])] if names else []


def check_finite(folder: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise AdapterError (BS694) if values of the adapter in a folder are not finite."""
    for problem in not_finite(tensors):
        raise AdapterError(codes.NOT_FINITE_ADAPTER(folder=folder, what=problem.message))


def find_drawn(
    plan: Plan, tensors: Mapping[str, torch.Tensor], seed: int
) -> dict[str, DrawnTensor]:
    """Find frozen tensors that the seed reproduces bit for bit, generating one at a time."""
    drawn = {}
    for tensor in plan.tensors:
        if tensor.drawn and not tensor.trainable:
            value = tensors[tensor.name].detach().cpu()
            dtype = str(value.dtype).removeprefix("torch.")
            if torch.equal(draw_tensor(tensor, seed).to(value.dtype), value):
                drawn[tensor.name] = DrawnTensor.model_validate(
                    {"dtype": dtype, "sha256": _digest(value)[:8]}
                )
    return drawn


def redraw_tensors(plan: Plan, config: AdapterConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Regenerate the random tensors that were not stored, by name.

    Raises:
        AdapterError: a tensor differs from the original (BS634).
    """
    for name, expected in config.drawn.items():
        value = draw_tensor(plan.tensor[name], config.seed)
        value = value.to(getattr(torch, expected.dtype))
        if not _digest(value).startswith(expected.sha256):
            raise AdapterError(
                codes.DRAWN_OTHERWISE(
                    name=name,
                    seed=config.seed,
                    here=torch.__version__,
                    there=config.versions.get("torch"),
                )
            )
        yield name, value


def restore_tensors(
    plan: Plan, config: AdapterConfig, stored: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Restore quantised tensors, by name.

    Raises:
        ValueError: the parts do not fit the tensor.
    """
    for name, labels in config.compact.items():
        form, shape = QUANTISED[labels], plan.tensor[name].shape
        parts = {label: stored[part_name(name, label)] for label in labels}
        if name in selecting(plan):
            raise ValueError(f"`{name}` selects other values, so it is not {form}")
        try:
            value = dequantise(form, parts, shape)
        except ValueError as error:
            raise ValueError(f"`{name}` is damaged: {error}") from error
        if not torch.isfinite(value).all():  # The scales are finite, but not their multiples.
            raise ValueError(f"`{name}` is damaged: its scales are too large")
        yield name, value


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()


# Fewer bits ---------------------------------------------------------------------------------------------


def quantise(tensor: torch.Tensor, form: str) -> dict[str, torch.Tensor]:
    """Return the parts of a tensor: its numbers divided by the scale of their group, and the scales.

    The scales are bfloat16, because those of small factors are below the range of float16. Two numbers
    of int4 are in one byte, the first in the lower half, each plus 8.

    Args:
        tensor: ``(rows, columns)``, finite.
        form: one of `BITS`.
    """
    most, values = _most(form), tensor.detach().cpu().float().flatten()
    groups = pad(values, (0, -len(values) % GROUP)).view(-1, GROUP)
    scales = (groups.abs().amax(1) / most).bfloat16()
    whole = (groups / scales.float().unsqueeze(1)).nan_to_num(0, 0, 0).round().clamp(-most, most)
    numbers = whole.flatten()[: len(values)].to(torch.int8)
    if form == "int8":
        return {form: numbers.view(tensor.shape), SCALES: scales}
    halves = pad(numbers + 8, (0, len(numbers) % 2), value=8).to(torch.uint8)
    return {form: halves[::2] | halves[1::2] << 4, SCALES: scales}


def dequantise(
    form: str, parts: Mapping[str, torch.Tensor], shape: tuple[int, ...]
) -> torch.Tensor:
    """Return a tensor from its parts, float32: each number times the scale of its group.

    Raises:
        ValueError: the parts do not fit the shape, or contain numbers that `quantise` does not write.
    """
    numbers, scales, size = parts[form], parts[SCALES], math.prod(shape)
    wanted = (torch.int8, shape) if form == "int8" else (torch.uint8, ((size + 1) // 2,))
    if (numbers.dtype, tuple(numbers.shape)) != wanted:
        raise ValueError(f"its {form} numbers are {numbers.dtype} {tuple(numbers.shape)}")
    if scales.dtype not in _SCALES or tuple(scales.shape) != (-(-size // GROUP),):
        raise ValueError(f"its scales are {scales.dtype} {tuple(scales.shape)}")
    if form == "int4":
        numbers = torch.stack((numbers & 15, numbers >> 4), 1).flatten().to(torch.int8) - 8
    if (numbers.numel() and numbers.min() < -_most(form)) or numbers.flatten()[size:].any():
        raise ValueError(f"its numbers are not {form}")
    scale_of = scales.float().repeat_interleave(GROUP)[:size]
    return (numbers.flatten()[:size].float() * scale_of).view(shape)


def losses(
    plan: Plan, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """Return the relative error of dW by kind of module, over some modules of each kind.

    Modules whose update is zero or depends on the input are left out.

    Args:
        plan: the adapter's.
        before: its tensors by name.
        after: the tensors as they are loaded.
    """
    errors, key = {}, lambda site: site.kind
    terms = ((site, plan.terms_of[site.path]) for site in plan.sites)
    sites = [site for site, here in terms if here and all(t.linear or t.is_magnitude for t in here)]
    for kind, members in groupby(sorted(sites, key=key), key):
        of_kind = list(members)
        lost = norm = 0.0
        for site in of_kind[:: -(-len(of_kind) // _MEASURED)]:
            (down, up), (a, b) = (
                [f.cpu() for f in effective_factors(plan, values, site, scaled=True)]
                for values in (before, after)
            )
            norm = math.hypot(norm, product_norm(down, up))
            lost = math.hypot(lost, product_norm(torch.cat([down, a]), torch.cat([up, -b])))
        if norm:
            errors[kind] = lost / norm
    return errors


def _most(form: str) -> int:
    return (1 << (BITS[form] - 1)) - 1
