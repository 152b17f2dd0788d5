"""Write a LoRA for mlx-lm, which `mlx_lm.load` takes as ``adapter_path``.

Its layers compute ``y + scale * (x lora_a) lora_b``, with ``lora_a (d_in, rank)``, ``lora_b (rank,
d_out)``, and one rank and scale for all. Most families have transformers' layer names, and mlx-lm rejects
tensors of missing layers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.effective import check_low_rank
from bishare_dsl.export.lora import Pair
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.plan import Plan
from bishare_dsl.writing import new_folder

CONFIG = "adapter_config.json"
TENSORS = "adapters.safetensors"


def check_mlx(plan: Plan, model: nn.Module) -> None:
    """Check that mlx-lm supports the adapter.

    Raises:
        AdapterError: a parameter is trained in full (BS686), or a term adapts an expert, an embedding or a
            tied head (BS646).
    """
    check_low_rank(plan, "export the adapter for mlx-lm")
    maps = linear_maps(model)
    for site in plan.sites:
        weight = maps[site.path]
        if plan.rows(site.path) and (weight.expert is not None or weight.looks_up or site.tied):
            reason = f"mlx-lm gets no LoRA of experts, embeddings and tied heads, as `{site.path}`"
            raise AdapterError(codes.EXPORT_OPTION(option="format", reason=reason))


def write_mlx(folder: Path, plan: Plan, pairs: Sequence[Pair]) -> None:
    """Write pairs as a folder for mlx-lm in one step, with lower ranks padded by zeros.

    Raises:
        OSError: the system refused.
    """
    rank = max(pair.rank for pair in pairs)
    factors: dict[str, torch.Tensor] = {}
    for pair in pairs:
        fill = (0, 0, 0, rank - pair.rank)
        down, up = nn.functional.pad(pair.down, fill), nn.functional.pad(pair.up, fill)
        factors[f"{pair.name}.lora_a"] = down.mT.contiguous()
        factors[f"{pair.name}.lora_b"] = up.contiguous()
    parameters = {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": [pair.name for pair in pairs]}
    config = {
        "model": plan.base.model_id or plan.base.name,
        "fine_tune_type": "lora",
        # The keys are full paths, so no other layer gets a useless LoRA.
        "num_layers": plan.base.layers,
        "lora_parameters": parameters,
    }
    with new_folder(folder) as new:
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (new / TENSORS).write_bytes(save(factors, {"format": "mlx"}))
