"""How a tensor is stored: whole, rounded, or not at all if the seed or the base reproduces it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from bishare_dsl.diagnostics import AdapterError, Problem, nearest
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.folder.config import (
    FORMAT,
    AdapterConfig,
    Entries,
    Entry,
    attribute_in,
    file_key,
    packages_of,
    plan_of_text,
)
from bishare_dsl.folder.devices import gather_tensors
from bishare_dsl.folder.fingerprint import find_reproduced
from bishare_dsl.folder.stacks import stacks_of
from bishare_dsl.initial.values import draw_tensor
from bishare_dsl.plan import Plan
from bishare_dsl.plan.file_bytes import selecting
from bishare_dsl.version import __version__

Frozen = Literal["seed", "tensors", "base"]
"""How frozen tensors are saved; ``"base"`` is ``"seed"``, and omits those that loading recomputes."""

Rounded = Literal["bfloat16"] | torch.dtype | None
"""The type of float32 tensors in the file, or its name; None to keep float32."""


@dataclass(frozen=True)
class Packed:
    """The contents of a folder before they are written.

    Attributes:
        tensors: of the tensor file, by key.
        config: without the digest of the tensors.
        warnings: what the caller should report.
    """

    tensors: dict[str, torch.Tensor]
    config: AdapterConfig
    warnings: tuple[Problem, ...]


def check_dtype(dtype: Rounded) -> Literal["bfloat16"] | None:
    """Return the name of a type for the file; None keeps the tensors' own.

    Raises:
        AdapterError: unsupported type (BS662).
    """
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    _check_choice("dtype", name, ("float32", "bfloat16"))
    return "bfloat16" if name == "bfloat16" else None


def _check_choice(option: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        help = nearest(str(value), valid, few=len(valid))
        raise AdapterError(codes.UNKNOWN_CHOICE(option=option, value=value, help=help))


def pack(
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    spec_text: str,
    *,
    seed: int,
    origin: Mapping[str, Any] | None = None,
    frozen: Frozen = "seed",
    dtype: Rounded = None,
    reproduced: Mapping[str, torch.Tensor] | None = None,
    exact: bool = False,
    format: int = FORMAT,
    command: str | None = None,
) -> Packed:
    """Return the contents of an adapter's tensor file, its config, and warnings.

    Args:
        plan, tensors, spec_text: see `save_adapter`.
        seed: of the initial values.
        origin: the fields of `ORIGIN`, if known.
        frozen: ``"seed"`` omits frozen tensors that the seed reproduces, which loading verifies;
            ``"tensors"`` stores them; ``"base"`` also omits what the base's weights give.
        dtype: ``"bfloat16"`` rounds float32 tensors to it, which halves the file.
        reproduced: tensors computed from the base's weights in float64; equal frozen tensors are omitted.
        exact: use ``dtype`` only if no value changes, and otherwise float32.
        format: `FORMAT`, or that of a library to which the adapter is added.
        command: the name of the command whose result it is.

    Raises:
        AdapterError: as `save_adapter`; or a type or a way is unknown (BS662).
    """
    rounded = check_dtype(dtype)
    _check_choice("frozen", frozen, get_args(Frozen))
    if plan_of_text(spec_text, plan.base).digest != plan.digest:
        raise AdapterError(codes.OTHER_COMPILER(help="pass the text that the plan was built from"))
    values = gather_tensors(plan, tensors)
    entries = {} if frozen == "tensors" else find_drawn(plan, values, seed)
    warnings = [] if frozen == "tensors" else _changed_frozen(plan, entries, seed)
    for name, marks in find_reproduced(plan, values, reproduced or {}).items():
        entries[name] = Entry(way="base", marks=marks)
    for tensor in plan.tensors:
        if tensor.name not in values:
            entries[tensor.name] = Entry(way="base")
    stored = {name: value.cpu() for name, value in values.items() if name not in entries}
    warnings += not_finite(stored)
    origin = origin or {}
    if origin.get("fingerprint", "") is None:
        warnings.append(codes.NO_FINGERPRINT())
    known = {name: value for name, value in origin.items() if value is not None}
    config = AdapterConfig(
        format=format,
        versions={"bishare": __version__},
        spec=spec_text,
        seed=seed,
        base=plan.base,
        plan=plan.digest,
        packages=packages_of(plan),
        entries=entries,
        command=command,
        **{"base_model": plan.base.model_id or plan.base.name, **known},
    )
    if rounded is not None and (not exact or _is_lossless(plan, stored)):
        config = config.model_copy(update={"rounded": rounded})
    contents = encode(plan, config, stored)
    if config.ways("seed"):
        contents[f"seed_{seed}"] = torch.empty(0)
    by_key = {file_key(key): tensor for key, tensor in contents.items()}
    return Packed(by_key, config, tuple(warnings))


def _changed_frozen(plan: Plan, entries: Mapping[str, Entry], seed: int) -> list[Problem]:
    """Warn of frozen random tensors that the seed does not reproduce (BS635)."""
    frozen = [tensor.name for tensor in plan.tensors if tensor.drawn and not tensor.trainable]
    changed = [name for name in frozen if name not in entries]
    if not changed:
        return []
    names = ", ".join(f"`{name}`" for name in changed[:3])
    if len(changed) > 3:
        names += ", ..."
    return [codes.FROZEN_CHANGED(seed=seed, names=names)]


def _is_lossless(plan: Plan, values: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether rounding to bfloat16 changes no value."""
    exact = selecting(plan)
    return all(
        name in exact
        or value.dtype != torch.float32
        or torch.equal(value.bfloat16().float(), value)
        for name, value in values.items()
    )


def encode(
    plan: Plan, config: AdapterConfig, values: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by the last components of their keys.

    Float32 values are rounded to bfloat16 if ``config.rounded`` is set and they select no other values.
    """
    exact = selecting(plan) if config.rounded else set()
    stored: dict[str, torch.Tensor] = {}
    for stack in stacks_of(plan, config.entries, alone=config.alone):
        rows = [values[tensor.name].detach().cpu() for tensor in stack.tensors]
        if config.rounded and stack.tensors[0].name not in exact:
            rows = [row.bfloat16() if row.dtype == torch.float32 else row for row in rows]
        stored[stack.key] = rows[0].clone() if stack.alone else torch.stack(rows)
    return stored


def decode(
    plan: Plan, config: AdapterConfig, stored: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a file by name, of which `encode` is the inverse up to rounding.

    Each is copied: kernels round differently at other alignments.
    """
    for stack in stacks_of(plan, config.entries, alone=config.alone):
        whole = stored[stack.key]
        rows = [whole] if stack.alone else whole.unbind()
        for tensor, row in zip(stack.tensors, rows, strict=True):
            was_rounded = config.rounded and row.dtype == torch.bfloat16
            yield tensor.name, row.float() if was_rounded else row.clone()


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


def find_drawn(plan: Plan, tensors: Mapping[str, torch.Tensor], seed: int) -> dict[str, Entry]:
    """Find frozen tensors that the seed reproduces bit for bit, generating one at a time."""
    drawn = {}
    for tensor in (tensor for tensor in plan.tensors if tensor.drawn and not tensor.trainable):
        value = tensors[tensor.name].detach().cpu()
        if torch.equal(draw_tensor(tensor, seed).to(value.dtype), value):
            how = {"dtype": str(value.dtype).removeprefix("torch."), "sha256": _digest(value)[:8]}
            drawn[tensor.name] = Entry.model_validate({"way": "seed", **how})
    return drawn


def redraw_tensors(plan: Plan, config: AdapterConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Regenerate the random tensors that were not stored, by name.

    Raises:
        AdapterError: a tensor differs from the original (BS634).
    """
    for name, expected in config.ways("seed").items():
        value = draw_tensor(plan.tensor[name], config.seed)
        value = value.to(getattr(torch, expected.dtype or "float32"))
        if not _digest(value).startswith(expected.sha256 or ""):
            raise AdapterError(codes.DRAWN_OTHERWISE(name=name, seed=config.seed))
        yield name, value


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()
