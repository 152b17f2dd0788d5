"""Write an adapter as a plain LoRA."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from bishare_dsl.convert import DTYPES, TARGETS
from bishare_dsl.convert.effective import check_linear
from bishare_dsl.convert.from_peft import compare
from bishare_dsl.convert.layouts import LAYOUTS
from bishare_dsl.convert.lora import Lora, plain_lora
from bishare_dsl.convert.origin import NONE, Origin
from bishare_dsl.convert.peft import served_by_vllm
from bishare_dsl.convert.report import ExportedSite, ExportReport
from bishare_dsl.diagnostics import AdapterError, nearest
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models import architecture_of
from bishare_dsl.plan import Plan
from bishare_dsl.writing import discard, standing_at


def export_adapter(
    out: str | os.PathLike[str],
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    model: nn.Module,
    format: str = "peft",
    *,
    rank: int | None = None,
    dtype: str | torch.dtype = torch.float32,
    origin: Origin = NONE,
) -> ExportReport:
    """Write a plain LoRA with the same update as the adapter, exact unless ``rank`` or ``dtype`` limits it.

    Each module has the rank that it needs. Scales are folded into B. Dropout is omitted, since it only
    affects training. The output appears in one step. It is read again, and dW compared at every module.

    Args:
        out: the folder or file to write; new, or an empty folder.
        plan: the adapter's plan.
        tensors: its tensors by name, with values.
        model: the base, adapted or not, on any device including meta. Its config and modules are read, and
            for a magnitude also its weights.
        format: one of `TARGETS`.
        rank: truncate to the best approximation of this rank.
        dtype: float32, bfloat16 or float16.
        origin: what to say of the base, the task and the licence.

    Raises:
        AdapterError: ``out`` exists (BS618) or cannot be written (BS616); the format is unknown (BS631) or
            an option is invalid (BS646); the update is nonlinear (BS633), or has a magnitude that the
            format does not support (BS675) or for which a weight is missing (BS624); llama.cpp does not
            support the family (BS647) or a module (BS648); a value is not finite (BS628); or the output
            cannot be read (BS656) or differs (BS607), and is removed.
    """
    out = Path(out)
    dtype_name = str(dtype).removeprefix("torch.")
    _check_options(format, dtype_name, rank)
    _check_free(out)
    terms = plan.update_terms if format == "peft" else plan.terms
    check_linear(terms, "export the adapter as a plain LoRA")
    pairs = tuple(plain_lora(plan, tensors, rank=rank, dtype=getattr(torch, dtype_name)))
    try:
        highest = LAYOUTS[format].write(out, Lora(plan, tensors, model, pairs, origin))
    except OSError as error:
        problem = codes.CANNOT_WRITE(path=error.filename or out, reason=error.strerror or error)
        raise AdapterError(problem) from error
    written = standing_at(out)
    is_exact = rank is None and dtype_name == "float32"
    # With ``rank`` or ``dtype``, the largest relative error is that of writing zeros.
    bound = 0.0 if is_exact else 1.0
    try:
        base = architecture_of(model)
        errors = compare(out, plan, tensors, base, lambda: model, format, bound)
    except BaseException:  # Remove output that was not verified.
        if standing_at(out) == written:
            discard(out)
        raise
    sites = [ExportedSite(pair.name, pair.rank, pair.rows, *errors[pair.name]) for pair in pairs]
    report = ExportReport(out, format, tuple(sites))
    # vLLM supports low-rank terms only.
    if highest is None or plan.trained or plan.has_magnitudes:
        return report
    return served_by_vllm(report, highest)


def _check_free(out: Path) -> None:
    """Check that nothing but an empty folder is there (BS618)."""
    is_empty_folder = out.is_dir() and not any(out.iterdir())
    if os.path.lexists(out) and not is_empty_folder:
        raise AdapterError(codes.FOLDER_EXISTS(folder=out))


def _check_options(format: str, dtype: str, rank: int | None) -> None:
    """Check the format (BS631), the dtype and the rank (BS646)."""
    if format not in TARGETS:
        raise AdapterError(codes.UNKNOWN_FORMAT(format=format, help=nearest(format, TARGETS)))
    if dtype not in DTYPES:
        reason = f"{dtype} is not one of {', '.join(DTYPES)}"
        raise AdapterError(codes.EXPORT_OPTION(option="dtype", reason=reason))
    if rank is not None and rank < 1:
        raise AdapterError(codes.EXPORT_OPTION(option="rank", reason="it must be at least 1"))
