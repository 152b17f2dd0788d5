"""A LoRA in mlx-lm's form, which `mlx_lm.load` takes as ``adapter_path``.

Its layers compute ``y + scale * (x lora_a) lora_b``, with ``lora_a (d_in, rank)`` and ``lora_b (rank,
d_out)``, of one rank and one scale for all. For most families it names layers as transformers does, and it
refuses tensors of layers that a model does not have.
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
    """Check that mlx-lm has such a LoRA.

    Raises:
        AdapterError: something is trained in full (BS686), or a term is at an expert, an embedding or a tied
            head (BS646).
    """
    check_low_rank(plan, "export the adapter for mlx-lm")
    maps = linear_maps(model)
    for site in plan.sites:
        weight = maps[site.path]
        if plan.rows(site.path) and (weight.expert is not None or weight.looks_up or site.tied):
            reason = f"mlx-lm gets no LoRA of experts, embeddings and tied heads, as `{site.path}`"
            raise AdapterError(codes.EXPORT_OPTION(option="format", reason=reason))


def write_mlx(folder: Path, plan: Plan, pairs: Sequence[Pair]) -> None:
    """Write pairs as a folder that mlx-lm loads, in one step; lower ranks are filled up with zeros.

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
        # The keys are paths in the model, and none is one in a layer: no layer gets a LoRA of no use.
        "num_layers": plan.base.layers,
        "lora_parameters": parameters,
    }
    with new_folder(folder) as new:
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (new / TENSORS).write_bytes(save(factors, {"format": "mlx"}))
