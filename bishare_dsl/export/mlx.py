"""The layout of mlx-lm, which `mlx_lm.load` takes as ``adapter_path``.

Its layers compute ``y + scale * (x lora_a) lora_b``, with ``lora_a (d_in, rank)``, ``lora_b (rank,
d_out)``, and one rank and scale for all. Most families have transformers' layer names, and mlx-lm rejects
tensors of missing layers.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from bishare_dsl.diagnostics import AdapterError, one_line
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.effective import check_low_rank
from bishare_dsl.export.lora import Lora
from bishare_dsl.export.peft_config import PeftConfig, read_tensors
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.site import Architecture
from bishare_dsl.reading import MAX_CONFIG, parse_json, read_file
from bishare_dsl.writing import new_folder

CONFIG = "adapter_config.json"
TENSORS = "adapters.safetensors"


def write_mlx(folder: Path, lora: Lora) -> None:
    """Write a folder for mlx-lm in one step, with lower ranks padded by zeros.

    Raises:
        AdapterError: a parameter is trained in full (BS686), or a term adapts an expert, an embedding or a
            tied head (BS646).
        OSError: the system refused.
    """
    plan, pairs = lora.plan, lora.pairs
    check_low_rank(plan, "export the adapter for mlx-lm")
    maps = linear_maps(lora.model)
    for pair in pairs:
        weight = maps[pair.name]
        if weight.expert is not None or weight.looks_up or pair.site.tied:
            reason = f"mlx-lm gets no LoRA of experts, embeddings and tied heads, as `{pair.name}`"
            raise AdapterError(codes.EXPORT_OPTION(option="format", reason=reason))
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


def read_mlx(
    folder: Path, architecture: Architecture, _: object
) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """Read a folder of mlx-lm.

    Raises:
        AdapterError: it cannot be read (BS608).
    """
    path = folder / CONFIG
    try:
        fields = parse_json(read_file(folder, CONFIG, MAX_CONFIG))
        parameters = fields["lora_parameters"]
        rank, scale = parameters["rank"], parameters["scale"]
        config = PeftConfig(
            peft_type="LORA" if fields.get("fine_tune_type", "lora") == "lora" else "DORA",
            base_model_name_or_path=fields.get("model"),
            r=rank,
            lora_alpha=rank * scale,
            lora_dropout=parameters.get("dropout", 0.0),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise AdapterError(codes.BROKEN_FILE(path=path, reason=one_line(error))) from error
    factors = {}
    for name, tensor in read_tensors(folder, TENSORS, architecture).items():
        module, _, end = name.rpartition(".")
        label = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}.get(end, end)
        factors[f"{module}.{label}"] = tensor.mT.contiguous() if tensor.dim() == 2 else tensor
    return config, factors
