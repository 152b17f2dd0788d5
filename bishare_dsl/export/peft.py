"""Export an adapter as one plain LoRA, for PEFT and for what serves PEFT's adapters.

vLLM (0.26) takes an ``adapter_config.json`` with one rank for all modules, no rank or alpha pattern it
would ignore, no bias, no ``modules_to_save``, no DoRA; and a rank of at most ``--max-lora-rank``, which
is one of `VLLM_RANKS` and 16 by default.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn
from transformers.pytorch_utils import Conv1D

from bishare_dsl.diagnostics import AdapterError, Problem
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.effective import check_linear, effective_factors
from bishare_dsl.models.inspect import ADAPTER
from bishare_dsl.plan import Plan
from bishare_dsl.writing import new_folder

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class ExportReport:
    """What was exported: the rank of every module, and what vLLM's ``--max-lora-rank`` must be.

    ``max_lora_rank`` is None, and ``warnings`` say so (BS632), where vLLM has no such rank.
    """

    folder: Path
    modules: int
    rank: int
    max_lora_rank: int | None
    warnings: tuple[Problem, ...]

    def __str__(self) -> str:
        serve = f"; vLLM needs --max-lora-rank {self.max_lora_rank}" if self.max_lora_rank else ""
        return f"exported {self.modules} modules at rank {self.rank} to {self.folder}{serve}"


def export_peft(
    folder: str | os.PathLike[str],
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    model: nn.Module,
    *,
    force: bool = False,
) -> ExportReport:
    """Write a PEFT LoRA that adds to the base exactly what the adapter adds.

    Every module gets the same rank, that of the module that needs most; the others' factors are padded
    with zeros. Scales are folded into B, so ``lora_alpha`` is the rank. Dropout is left out: it is for
    training. The folder appears in one step.

    Args:
        folder: to write; it does not exist yet, unless ``force`` lets an earlier export be replaced.
        plan: the adapter's plan.
        tensors: its tensors by name, with values.
        model: the base, adapted or not, with weights or on the meta device: its modules' names and
            classes are looked at.

    Raises:
        AdapterError: the folder exists (BS618), holds something else (BS630), or cannot be written
            (BS616); or the adapter is no matrix (BS633).
    """
    folder = Path(folder)
    check_linear(plan.terms, "export the adapter as a plain LoRA")
    _check_folder(folder, force)
    sites = [site for site in plan.sites if plan.rows(site.path)]
    rank = max(plan.rows(site.path) for site in sites)
    factors: dict[str, torch.Tensor] = {}
    for site in sites:
        down, up = effective_factors(plan, tensors, site)
        padded = (0, 0, 0, rank - len(down))
        key = f"base_model.model.{site.path}"
        factors[f"{key}.lora_A.weight"] = nn.functional.pad(down, padded).cpu().contiguous()
        factors[f"{key}.lora_B.weight"] = nn.functional.pad(up, padded).t().cpu().contiguous()
    config = _peft_config(plan, model, [site.path for site in sites], rank)
    files = {
        CONFIG: json.dumps(config, indent=2, sort_keys=True).encode() + b"\n",
        TENSORS: save(factors, {"format": "pt"}),
    }
    try:
        with new_folder(folder) as new:
            for name, content in files.items():
                (new / name).write_bytes(content)
    except OSError as error:
        raise AdapterError(
            codes.CANNOT_WRITE(path=error.filename or folder, reason=error.strerror or error)
        ) from error
    enough = next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)
    limit = codes.RANK_FOR_VLLM(rank=rank, limit=VLLM_RANKS[-1])
    return ExportReport(folder, len(sites), rank, enough, () if enough else (limit,))


def _peft_config(plan: Plan, model: nn.Module, paths: Sequence[str], rank: int) -> dict[str, Any]:
    transposed = [isinstance(model.get_submodule(path), Conv1D) for path in paths]
    name = getattr(getattr(model, "config", None), "name_or_path", None)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name or plan.base.model_id,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": _target_modules(model, paths),
        "fan_in_fan_out": all(transposed),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "inference_mode": True,
    }


def _target_modules(model: nn.Module, paths: Sequence[str]) -> list[str] | str:
    """What makes PEFT choose these modules and no others: kinds if they do, else paths, else a regex.

    PEFT takes a module whose path is a target or ends in a dot and a target.
    """
    names = [name for name, _ in model.named_modules() if ADAPTER not in name.split(".")]
    for targets in (sorted({path.rpartition(".")[2] for path in paths}), list(paths)):
        endings = tuple(f".{target}" for target in targets)
        if {name for name in names if f".{name}".endswith(endings)} == set(paths):
            return targets
    return "|".join(re.escape(path) for path in paths)


def _check_folder(folder: Path, force: bool) -> None:
    if folder.is_dir():
        found = {path.name for path in folder.iterdir()}
        if found and not force:
            raise AdapterError(
                codes.FOLDER_EXISTS(folder=folder, help="`force` replaces an export")
            )
        if foreign := sorted(found - {CONFIG, TENSORS}):
            shown = ", ".join(foreign[:3])
            raise AdapterError(codes.NOT_EXPORTED(folder=folder, found=shown))
    elif folder.exists():
        raise AdapterError(codes.FOLDER_EXISTS(folder=folder, help="it is a file"))
