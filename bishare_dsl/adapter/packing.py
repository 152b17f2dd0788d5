"""The contents of an adapter's files, from its plan and the values of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bishare_dsl.adapter.config import (
    RECORD_FORMAT,
    AdapterConfig,
    Entry,
    file_key,
    installed_versions,
)
from bishare_dsl.adapter.devices import gather_tensors
from bishare_dsl.adapter.replan import packages_of, plan_of_text
from bishare_dsl.adapter.sharing import sharing_of
from bishare_dsl.diagnostics import AdapterError, Problem
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.plan import Plan
from bishare_dsl.plan.bits import BITS, quantisable

if TYPE_CHECKING:
    import torch

    from bishare_dsl.adapter.stored import Frozen, Rounded


_LOSS = {"int8": "0.5 to 0.9%", "int4": "9 to 16%"}
"""By how much updates are off, over the methods of benchmarks/notes/2026-11-27-bytes.md."""


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
        AdapterError: as `save_adapter`.
    """
    import torch

    from bishare_dsl.adapter.fingerprint import find_reproduced
    from bishare_dsl.adapter.stored import decode, encode, find_drawn, form_of, not_finite

    form = form_of(dtype)
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
        versions=installed_versions(),
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
            warnings.append(codes.LOST_BY_QUANTISING(form=form, bits=bits, error=_LOSS[form]))
    if config.ways("seed"):
        stored[f"seed_{seed}"] = torch.empty(0)
    config = config.model_copy(update={"sharing": sharing_of(plan, config)})
    return {file_key(key): tensor for key, tensor in stored.items()}, config, tuple(warnings)
