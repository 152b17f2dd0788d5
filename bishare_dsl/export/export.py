"""Write an adapter as a plain LoRA."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from bishare_dsl.diagnostics import AdapterError, nearest
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export import DTYPES, EXPERTS, FORMATS
from bishare_dsl.export.effective import check_linear, check_low_rank
from bishare_dsl.export.gguf import gguf_names, write_gguf
from bishare_dsl.export.lora import Pair, plain_lora, total_error
from bishare_dsl.export.mlx import check_mlx, write_mlx
from bishare_dsl.export.peft import served_by_vllm, taken_for_others, write_peft
from bishare_dsl.export.report import ExportedSite, ExportReport
from bishare_dsl.plan import Plan


def export_adapter(
    out: str | os.PathLike[str],
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    model: nn.Module,
    format: str = "peft",
    *,
    rank: int | None = None,
    dtype: str | torch.dtype = torch.float32,
    uniform_rank: bool = False,
    experts: str = "fused",
) -> ExportReport:
    """Write a plain LoRA with the same update as the adapter, exact unless ``rank`` or ``dtype`` limits it.

    Each module has the rank that it needs. Scales are folded into B. Dropout is omitted, since it only
    affects training. The output appears in one step.

    Args:
        out: the folder (``peft``, ``mlx``) or file (``gguf``) to write; new, or an empty folder.
        plan: the adapter's plan.
        tensors: its tensors by name, with values.
        model: the base, adapted or not, on any device including meta. Its config and modules are read, and
            for a magnitude also its weights.
        format: one of `FORMATS`.
        rank: truncate to the best approximation of this rank, and report the error.
        dtype: float32, bfloat16 or float16.
        uniform_rank: write the highest rank for all modules, for engines without ``rank_pattern``.
        experts: the layout of experts in one parameter: ``fused`` with PEFT's ``target_parameters``;
            ``each`` with a module per expert for vLLM and SGLang; ``shared-outer`` for them if A of gate
            and up, and B of down, are equal for all experts of a layer.

    Raises:
        AdapterError: ``out`` exists (BS618) or cannot be written (BS616); the format is unknown (BS631) or
            an option is invalid (BS646); the update is nonlinear (BS633), or has a magnitude that the
            format does not support (BS675) or for which a weight is missing (BS624); llama.cpp does not
            support the family (BS647) or a module (BS648); experts do not share their outer factors
            (BS685); or a value is not finite (BS628).
    """
    out = Path(out)
    named = str(dtype).removeprefix("torch.")
    if format not in FORMATS:
        raise AdapterError(codes.UNKNOWN_FORMAT(format=format, help=nearest(format, FORMATS)))
    for option, value, known in (("dtype", named, DTYPES), ("experts", experts, EXPERTS)):
        if value not in known:
            reason = f"{value} is not one of {', '.join(known)}"
            raise AdapterError(codes.EXPORT_OPTION(option=option, reason=reason))
    if rank is not None and rank < 1:
        raise AdapterError(codes.EXPORT_OPTION(option="rank", reason="it must be at least 1"))
    for option, given in (("uniform_rank", uniform_rank), ("experts", experts != "fused")):
        if given and format != "peft":
            reason = f"the format {format} leaves no choice of it"
            raise AdapterError(codes.EXPORT_OPTION(option=option, reason=reason))
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise AdapterError(codes.FOLDER_EXISTS(folder=out))
    plain = format != "peft" or experts != "fused"
    check_linear(plan.terms if plain else plan.unscaled, "export the adapter as a plain LoRA")
    write: Callable[[Sequence[Pair]], int | None]
    if format == "gguf":
        check_low_rank(plan, "export the adapter in GGUF")
        sites = [site for site in plan.sites if plan.rows(site.path) or site.tied]
        names = gguf_names(sites, plan.base.layers, model)
        write = partial(write_gguf, out, plan, model, names=names)
    elif format == "mlx":
        check_mlx(plan, model)
        write = partial(write_mlx, out, plan)
    else:
        whole = {t.tensor: tensors[t.tensor] for t in plan.trained if t.tensor in tensors}
        write = partial(
            write_peft,
            out,
            plan,
            model,
            tensors,
            whole=whole,
            uniform=uniform_rank,
            experts=experts,
        )
    pairs = tuple(plain_lora(plan, tensors, rank=rank, dtype=getattr(torch, named)))
    try:
        highest = write(pairs)
    except OSError as error:
        raise AdapterError(
            codes.CANNOT_WRITE(path=error.filename or out, reason=error.strerror or error)
        ) from error
    for_peft = format == "peft" and experts == "fused"
    inexact = rank is not None or named != "float32"
    report = ExportReport(
        out,
        format,
        tuple(ExportedSite(pair.site.path, pair.rank, pair.rows, pair.error) for pair in pairs),
        total_error(pairs) if inexact else None,
        warnings=tuple(taken_for_others(model, [pair.site for pair in pairs]) if for_peft else ()),
    )
    # vLLM supports low-rank terms only.
    alone = not plan.trained and len(plan.unscaled) == len(plan.terms)
    return served_by_vllm(report, highest) if highest is not None and alone else report
