"""How a tensor is stored: whole, rounded, quantised, or not at all if the seed reproduces it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast, get_args

import torch
from torch.nn.functional import pad

from bishare_dsl.diagnostics import AdapterError, Problem, nearest
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.folder.config import (
    RECORD_FORMAT,
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
from bishare_dsl.folder.sharing import sharing_of, stacks_of
from bishare_dsl.initial.values import draw_tensor
from bishare_dsl.plan import Plan, Tensor
from bishare_dsl.plan.bits import BITS, GROUP, SCALES, offset_of, quantisable, selecting
from bishare_dsl.version import __version__

Frozen = Literal["seed", "tensors", "base"]
"""How frozen tensors are saved; ``"base"`` is ``"seed"``, and omits those that loading recomputes."""

Form = Literal["bfloat16", "int8", "int4"]
"""Types in a file other than the tensors' own: rounded, or in groups with scales."""

Rounded = Form | torch.dtype | None
"""The type of float32 tensors in the file, or its name; None to keep float32."""


_MOST = {form: 2 ** (bits - 1) - 1 for form, bits in BITS.items()}
"""The largest quantised number by form."""


def form_of(dtype: Rounded) -> Form | None:
    """Return the name of a type for the file; None keeps the tensors' own.

    Raises:
        AdapterError: unsupported type (BS662).
    """
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    _check_choice("dtype", name, ("float32", *get_args(Form)))
    return None if name == "float32" else cast(Form, name)


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
    format: int = RECORD_FORMAT,
) -> tuple[dict[str, torch.Tensor], AdapterConfig, tuple[Problem, ...]]:
    """Return the contents of an adapter's tensor file by key, the config, and warnings.

    Args:
        plan, tensors, spec_text: see `save_adapter`.
        seed: of the initial values.
        origin: the fields of `ORIGIN`, if known.
        frozen: ``"seed"`` omits frozen tensors that the seed reproduces, which loading verifies;
            ``"tensors"`` stores them; ``"base"`` also omits what the base's weights give.
        dtype: ``"bfloat16"`` rounds float32 tensors to it, which halves the file. ``"int8"`` and ``"int4"``
            quantise tensors of terms in groups of 64 numbers, and round the others to bfloat16.
        reproduced: tensors computed from the base's weights in float64; equal frozen tensors are omitted.
        exact: use ``dtype`` only if no value changes, and otherwise float32.
        format: `RECORD_FORMAT`, or that of a library to which the adapter is added.

    Raises:
        AdapterError: as `save_adapter`; or a type or a way is unknown (BS662).
    """
    form = form_of(dtype)
    _check_choice("frozen", frozen, get_args(Frozen))
    if plan_of_text(spec_text, plan.base).digest != plan.digest:
        raise AdapterError(codes.OTHER_COMPILER(help="pass the text that the plan was built from"))
    values, warnings = gather_tensors(plan, tensors), []
    entries = find_drawn(plan, values, seed) if frozen != "tensors" else {}
    frozen_here = (t.name for t in plan.tensors if t.drawn and not t.trainable)
    changed = [name for name in frozen_here if name not in entries]
    if changed and frozen != "tensors":
        names = ", ".join(f"`{name}`" for name in changed[:3]) + ", ..." * (len(changed) > 3)
        warnings.append(codes.FROZEN_CHANGED(seed=seed, names=names))
    marks = find_reproduced(plan, values, reproduced or {}).items()
    entries |= {name: Entry(way="base", marks=mark) for name, mark in marks}
    entries |= {t.name: Entry(way="base") for t in plan.tensors if t.name not in values}
    kept = {name: value.cpu() for name, value in values.items() if name not in entries}
    warnings += not_finite(kept)
    if origin and origin.get("fingerprint", "") is None:
        warnings.append(codes.NO_FINGERPRINT())
    known = {key: value for key, value in (origin or {}).items() if value is not None}
    config = AdapterConfig(
        format=format,
        versions={"bishare": __version__},
        spec=spec_text,
        seed=seed,
        base=plan.base,
        plan=plan.digest,
        packages=packages_of(plan),
        entries=entries,
        **{"base_model": plan.base.model_id or plan.base.name, **known},
    )
    whole, stored = config, encode(plan, config, kept)
    if form is not None:
        quantised = quantisable(plan) & kept.keys() if form in BITS else set[str]()
        small = {name: Entry.model_validate({"way": form}) for name in quantised}
        config = config.model_copy(update={"rounded": form, "entries": {**entries, **small}})
        rounded = encode(plan, config, kept)
        loaded = dict(decode(plan, config, rounded))
        lossless = all(torch.equal(loaded[name].double(), v.double()) for name, v in kept.items())
        if exact and not lossless:
            config = whole
        else:
            stored = rounded
        if form in BITS and not exact and not lossless:
            size = sum(tensor.nbytes for tensor in rounded.values())
            bits = f"{8 * size / sum(value.numel() for value in kept.values()):.3g}"
            lost = (loaded[name].double() - value.double() for name, value in kept.items())
            of, off = (math.hypot(*(v.norm() for v in vs)) for vs in (kept.values(), lost))
            warnings.append(codes.LOST_BY_QUANTISING(form=form, bits=bits, error=f"{off / of:.1%}"))
    if config.ways("seed"):
        stored[f"seed_{seed}"] = torch.empty(0)
    config = config.model_copy(update={"sharing": sharing_of(plan, config)})
    return {file_key(key): tensor for key, tensor in stored.items()}, config, tuple(warnings)


def encode(
    plan: Plan, config: AdapterConfig, values: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by the last components of their keys.

    Quantised stacks as ``config.entries`` says. Of the others, float32 values are rounded to bfloat16 if
    ``config.rounded`` is set and they select no other values.
    """
    exact, stored = selecting(plan), dict[str, torch.Tensor]()
    for stack in stacks_of(plan, config.entries, alone=config.alone):
        rows = [values[tensor.name].detach().cpu() for tensor in stack.tensors]
        parts = {"key": rows}
        if (form := stack.form) is not None:
            offset = offset_of(stack.tensors[0])
            quantised = [quantise(row - offset if offset else row, form) for row in rows]
            parts = {label: [parts[label] for parts in quantised] for label in stack.parts}
        elif config.rounded and stack.tensors[0].name not in exact:
            parts["key"] = [row.bfloat16() if row.dtype == torch.float32 else row for row in rows]
        for label, key in stack.parts.items():
            whole = torch.stack(parts[label])
            stored[key] = whole.squeeze(0) if stack.alone else whole
    return stored


def decode(
    plan: Plan, config: AdapterConfig, stored: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a file by name, of which `encode` is the inverse up to rounding.

    Each is copied: kernels round differently at other alignments.

    Raises:
        ValueError: quantised numbers are not those that `quantise` writes.
    """
    for stack in stacks_of(plan, config.entries, alone=config.alone):
        found = (stored[key] for key in stack.parts.values())
        rows = ((part.unsqueeze(0) if stack.alone else part).unbind() for part in found)
        for tensor, row, *scales in zip(stack.tensors, *rows, strict=True):
            widens = config.rounded and row.dtype == torch.bfloat16
            value = row.float() if widens else row.clone()
            if stack.form is not None:
                value = dequantise(tensor, stack.form, value, *scales)
            yield tensor.name, value


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
        if not _digest(value).startswith(expected.sha256):
            raise AdapterError(codes.DRAWN_OTHERWISE(name=name, seed=config.seed))
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
    most, values = _MOST[form], tensor.detach().cpu().float().flatten()
    groups = pad(values, (0, -len(values) % GROUP)).view(-1, GROUP)
    scales = (groups.abs().amax(1) / most).bfloat16()
    whole = (groups / scales.float().unsqueeze(1)).nan_to_num(0, 0, 0).round().clamp(-most, most)
    numbers = whole.flatten()[: len(values)].to(torch.int8)
    if form == "int8":
        return {form: numbers.view(tensor.shape), SCALES: scales}
    halves = pad(numbers + 8, (0, len(numbers) % 2), value=8).to(torch.uint8)
    return {form: halves[::2] | halves[1::2] << 4, SCALES: scales}


def dequantise(
    tensor: Tensor, form: str, numbers: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """Return a tensor from its parts, float32: each number times the scale of its group, plus its offset.

    Raises:
        ValueError: the parts contain numbers that `quantise` does not write.
    """
    if form == "int4":
        numbers = torch.stack((numbers & 15, numbers >> 4), 1).flatten().to(torch.int8) - 8
    if (numbers.numel() and numbers.min() < -_MOST[form]) or numbers.flatten()[tensor.size :].any():
        raise ValueError(f"`{tensor.name}` is damaged: its numbers are not {form}")
    scale_of = scales.float().repeat_interleave(GROUP)[: tensor.size]
    value = (numbers.flatten()[: tensor.size].float() * scale_of).view(tensor.shape)
    if not torch.isfinite(value).all():  # The scales are finite, but not their multiples.
        raise ValueError(f"`{tensor.name}` is damaged: its scales are too large")
    return value + offset if (offset := offset_of(tensor)) else value
