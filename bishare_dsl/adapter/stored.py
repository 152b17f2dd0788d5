"""How a tensor is stored: whole, in parts, or not at all if the seed reproduces it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch

from bishare_dsl.adapter.config import AdapterConfig, DrawnTensor, Entries, attribute_in, part_name
from bishare_dsl.adapter.initial import draw_tensor
from bishare_dsl.adapter.old_draws import draw_by_torch
from bishare_dsl.diagnostics import AdapterError, Problem
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.plan import Plan, Tensor
from bishare_dsl.transforms import Transform, guard, load_transform

Frozen = Literal["seed", "tensors", "base"]
"""How frozen tensors are saved; ``"base"`` is ``"seed"``, and omits those that loading recomputes."""

Rounded = Literal["bfloat16"] | torch.dtype | None
"""The type to which float32 tensors are rounded for the file, or its name; None to keep float32."""


def round_tensor(tensor: torch.Tensor, dtype: Rounded) -> torch.Tensor:
    """Round a float32 tensor for the file; tensors of other types are unchanged.

    Raises:
        AdapterError: unsupported type (BS662).
    """
    if dtype not in (None, "bfloat16", torch.bfloat16):
        raise AdapterError(codes.UNKNOWN_DTYPE(dtype=dtype))
    return tensor.bfloat16() if dtype and tensor.dtype == torch.float32 else tensor


def never_rounded(plan: Plan) -> set[str]:
    """Return tensors that select other values, because rounding could change the selection."""
    return {name for name, (transform, role) in _users(plan).items() if role in transform.exact}


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
    if not entry["data"]:  # torch rejects an empty buffer.
        return torch.empty(entry["shape"], dtype=dtype)
    return torch.frombuffer(entry["data"], dtype=dtype).view(entry["shape"]).clone()


def entries_of(tensors: Mapping[str, torch.Tensor]) -> Entries:
    """Return the entries of tensors by key; the data are views, not copies."""
    found = {}
    for key, tensor in tensors.items():
        name = str(tensor.dtype).removeprefix("torch.").replace("float", "f")
        dtype = name.replace("uint", "u").replace("int", "i").upper()
        data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        found[attribute_in(key)] = {"dtype": dtype, "shape": [*tensor.shape], "data": data}
    return found


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
    found = {}
    for tensor in plan.tensors:
        if tensor.drawn and not tensor.trainable:
            value = tensors[tensor.name].detach().cpu()
            dtype = str(value.dtype).removeprefix("torch.")
            for generator in ("philox", "torch"):
                if torch.equal(_drawn(tensor, seed, generator).to(value.dtype), value):
                    found[tensor.name] = DrawnTensor.model_validate(
                        {"dtype": dtype, "generator": generator, "sha256": _digest(value)[:8]}
                    )
                    break
    return found


def _drawn(tensor: Tensor, seed: int, generator: str) -> torch.Tensor:
    return draw_by_torch(tensor, seed) if generator == "torch" else draw_tensor(tensor, seed)


def redraw_tensors(plan: Plan, config: AdapterConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Regenerate the random tensors that were not stored, by name.

    Raises:
        AdapterError: a tensor differs from the original (BS634).
    """
    for name, expected in config.drawn.items():
        value = _drawn(plan.tensor[name], config.seed, expected.generator)
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


def compact_tensors(
    plan: Plan, tensors: Mapping[str, torch.Tensor]
) -> dict[str, Mapping[str, torch.Tensor]]:
    """Create the parts of tensors that have a compact form. Magnitudes do not: they have no transform.

    Raises:
        SpecError: a package's transform fails (BS214).
    """
    found = {}
    for name, (transform, role) in _users(plan).items():
        if name in tensors and role in transform.roles:
            with guard(transform, "compact"):
                parts = transform.compact(role, tensors[name].detach())
            if parts is not None:
                found[name] = parts
    return found


def restore_tensors(
    plan: Plan, config: AdapterConfig, stored: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Restore tensors that were stored in parts, by name.

    Raises:
        SpecError: a package's transform fails (BS214).
        ValueError: the parts do not fit the tensor.
    """
    users = _users(plan) if config.compact else {}
    for name, labels in config.compact.items():
        transform, role = users[name]
        shape = plan.tensor[name].shape
        parts = {label: stored[part_name(name, label)] for label in labels}
        with guard(transform, "restore", ValueError):
            value = transform.restore(role, parts, shape)
        if tuple(value.shape) != shape:
            raise ValueError(f"the parts of `{name}` give a tensor {tuple(value.shape)}")
        yield name, value


def _users(plan: Plan) -> dict[str, tuple[Transform, str]]:
    """Return the transform that uses a tensor, and the tensor's role in it; of several, the first."""
    found: dict[str, tuple[Transform, str]] = {}
    for term in plan.terms:
        transform = load_transform(term.transform, term.options)
        for role, name in term.tensors.items():
            found.setdefault(name, (transform, role))
    return found


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()
