"""The layouts of plain LoRA files, as a table for reading the files of any program.

Reading returns PEFT's names and shapes: ``PATH.lora_A.weight (rank, d_in)`` and ``PATH.lora_B.weight
(d_out, rank)``. A name that fits no row is an error.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import AdapterError, one_line
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.peft_config import PeftConfig, read_config
from bishare_dsl.models.site import Architecture, most_parameters
from bishare_dsl.reading import MAX_CONFIG, read_file

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bishare_dsl.models.weights import Weight

_BYTES_EACH = 8  # float64


@dataclass(frozen=True)
class Layout:
    """A row of the table.

    Attributes:
        title: the programs that use it.
        tensors: the file of tensors in the folder; ``""`` if the path itself is the file.
        modules: the names of factors, from the names of modules.
        experts: the same for experts whose weights are one parameter.
        target: the options of `export_adapter` that write it; None if another row has the same.
    """

    title: str
    tensors: str
    modules: str
    experts: str
    target: Mapping[str, str] | None = None


_PEFT_FILE = "adapter_model.safetensors"
_MODULES = "base_model.model.PATH.lora_A.weight (rank, d_in), lora_B.weight (d_out, rank)"
LAYOUTS: Mapping[str, Layout] = {
    "peft": Layout(
        "PEFT, with `target_parameters` for experts",
        _PEFT_FILE,
        _MODULES,
        "EXPERTS.lora_A.weight (experts * rank, d_in), lora_B.weight (d_out, rank * experts)",
        {"format": "peft", "experts": "fused"},
    ),
    "vllm": Layout(
        "vLLM, Megatron-Bridge's export with names of Hugging Face",
        _PEFT_FILE,
        _MODULES,
        "a module for each map of each expert, named as in checkpoints: EXPERTS.3.up_proj",
        {"format": "peft", "experts": "each"},
    ),
    "sglang": Layout(
        "SGLang and Miles, with shared outer factors",
        _PEFT_FILE,
        _MODULES,
        "EXPERTS.w1, w2, w3 (gate, down, up): lora_A.weight (experts or 1, rank, d_in), "
        "lora_B.weight (experts or 1, d_out, rank)",
        {"format": "peft", "experts": "shared-outer"},
    ),
    "tinker": Layout(
        "Tinker",
        _PEFT_FILE,
        f"{_MODULES}; the head is `unembed_tokens`",
        "as in `sglang`",
    ),
    "mlx": Layout(
        "mlx-lm",
        "adapters.safetensors",
        "PATH.lora_a (d_in, rank), lora_b (rank, d_out)",
        "none",
        {"format": "mlx"},
    ),
    "gguf": Layout(
        "llama.cpp",
        "",
        "NAME.weight.lora_a (rank, d_in), lora_b (d_out, rank), in llama.cpp's names and order of rows",
        "blk.N.ffn_gate_exps: lora_a (experts, rank, d_in), lora_b (experts, d_out, rank)",
        {"format": "gguf"},
    ),
}
"""The layouts, by the value of ``bishare convert --for``."""

_ALIASES = {"unembed_tokens": "lm_head", "model.unembed_tokens": "lm_head"}
"""Modules whose names in a layout differ from transformers'."""

_KINDS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
"""Names of maps in layouts with all experts in one tensor."""

FACTOR = re.compile(r"(.+)\.lora_(?:([AB])\.weight|embedding_([AB]))")
"""PEFT's name of a factor."""

Base = Callable[[], "nn.Module"]


def layout_of(path: str | os.PathLike[str]) -> str | None:
    """Return the layout of a plain LoRA's file or folder; all layouts with PEFT's files count as one."""
    path = Path(path)
    with suppress(OSError):  # Such as a name that is too long.
        return _layout_of(path)
    return None


def _layout_of(path: Path) -> str | None:
    if path.suffix == ".gguf" and path.is_file():
        return "gguf"
    if (path / LAYOUTS["mlx"].tensors).is_file():
        return "mlx"
    return "peft" if (path / _PEFT_FILE).is_file() else None


def read_lora(
    path: Path, architecture: Architecture, model: Base | None
) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """Return the config and the tensors of a plain LoRA under PEFT's names without its prefix.

    Args:
        path: a folder or a GGUF file.
        architecture: the architecture of the base.
        model: returns the base, perhaps on the meta device.

    Raises:
        AdapterError: it cannot be read (BS608), or has unknown names (BS613).
    """
    match layout_of(path):
        case "mlx":
            return _read_mlx(path, architecture)
        case "gguf" if model is not None:
            return _read_gguf(path, architecture, model())
    config = read_config(path)
    tensors = read_tensors(path, _PEFT_FILE, architecture)
    names = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    return config, {_renamed(name): tensor for name, tensor in names.items()}


def _renamed(name: str) -> str:
    factor = FACTOR.fullmatch(name)
    alias = _ALIASES.get(factor[1]) if factor else None
    return f"{alias}{name[len(factor[1]) :]}" if factor and alias else name


def read_tensors(folder: Path, file: str, architecture: Architecture) -> dict[str, torch.Tensor]:
    """Return the tensors of a file in a folder by name.

    Raises:
        AdapterError: they cannot be read, or are too large for the base (BS608).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / file
    try:
        tensors = load(read_file(folder, file, _BYTES_EACH * most_parameters(architecture)))
    except (OSError, SafetensorError) as error:
        raise AdapterError(codes.BROKEN_FILE(path=path, reason=one_line(error))) from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():  # float32 would drop imaginary parts.
            kind = str(tensor.dtype).removeprefix("torch.")
            reason = f"the tensor `{name}` is {kind}"
            raise AdapterError(codes.BROKEN_FILE(path=path, reason=reason))
    return tensors


def expand_experts(
    factors: dict[str, dict[str, torch.Tensor]], known: Collection[str], model: Base | None
) -> dict[str, str]:
    """Rename the factors of experts to the paths of their maps; return their old names by path.

    Args:
        factors: A and B by module name, changed in place.
        known: names that are already paths.
        model: returns the base, whose checkpoints also name experts.
    """
    unknown = [name for name in factors if name not in known]
    if not unknown or model is None:
        return {}
    from bishare_dsl.export.experts import in_checkpoints
    from bishare_dsl.models.inspect import linear_maps

    base = model()
    maps = linear_maps(base)
    of_experts = {path: weight for path, weight in maps.items() if weight.expert is not None}
    if not of_experts:
        return {}
    by_name = {name: path for path, name in in_checkpoints(base, of_experts).items()}
    stacks: dict[tuple[str, str], dict[int, str]] = {}
    for name, path in (*by_name.items(), *((path, path) for path in of_experts)):
        owner, kind = name.rsplit(".", 2)[0], path.rpartition(".")[2]
        stacks.setdefault((owner, kind), {})[of_experts[path].expert or 0] = path
    origins: dict[str, str] = {}
    for name in unknown:
        owner, _, kind = name.rpartition(".")
        pair = factors[name]
        found = {0: by_name[name]} if name in by_name else {}
        if not found and all(tensor.dim() == 3 for tensor in pair.values()):
            found = stacks.get((owner, _KINDS.get(kind, kind)), {})
            if any(len(tensor) not in (1, len(found)) for tensor in pair.values()):
                found = {}
            for expert, path in found.items():
                factors[path] = {
                    label: tensor[expert if len(tensor) > 1 else 0]
                    for label, tensor in pair.items()
                }
        elif found:
            factors[found[0]] = pair
        if found:
            del factors[name]
            origins |= dict.fromkeys(found.values(), name)
    return origins


def _read_mlx(
    folder: Path, architecture: Architecture
) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    path = folder / "adapter_config.json"
    try:
        fields = json.loads(read_file(folder, path.name, MAX_CONFIG))
        parameters = fields["lora_parameters"]
        rank, scale = parameters["rank"], parameters["scale"]
        config = PeftConfig(
            peft_type="LORA" if fields.get("fine_tune_type", "lora") == "lora" else "DORA",
            base_model_name_or_path=fields.get("model"),
            r=rank,
            lora_alpha=rank * scale,
            lora_dropout=parameters.get("dropout", 0.0),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AdapterError(codes.BROKEN_FILE(path=path, reason=one_line(error))) from error
    found = {}
    for name, tensor in read_tensors(folder, LAYOUTS["mlx"].tensors, architecture).items():
        module, _, end = name.rpartition(".")
        label = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}.get(end, end)
        found[f"{module}.{label}"] = tensor.mT.contiguous() if tensor.dim() == 2 else tensor
    return config, found


def _read_gguf(
    path: Path, architecture: Architecture, model: nn.Module
) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    import torch

    from bishare_dsl.export.gguf import gguf_names, row_order
    from bishare_dsl.models.inspect import linear_maps

    names = gguf_names(architecture.every_site, architecture.layers, model, strict=False)
    sites = {site.path: site for site in architecture.every_site}
    maps = linear_maps(model)
    by_weight: dict[str, list[Weight]] = {}
    for of, name in names.items():
        by_weight.setdefault(name, []).append(maps[of])
    found: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    alpha, tensors = _gguf_tensors(path)
    for name, values in tensors.items():
        weight, _, label = name.rpartition(".")
        if weight not in by_weight or label not in ("lora_a", "lora_b"):
            reason = f"it has no weight `{name}`"
            other = codes.OTHER_BASE(base="another base", model=architecture.name, reason=reason)
            raise AdapterError(other)
        factor = torch.from_numpy(values.copy())
        for each in by_weight[weight]:
            one = factor if each.expert is None else factor[each.expert]
            rank = one.shape[0] if label == "lora_a" else one.shape[1]
            if label == "lora_b":
                one = one * (alpha / rank) if alpha else one
                if (rows := row_order(model, sites[each.path])) is not None:
                    one = torch.empty_like(one).index_copy_(0, rows, one)
            ranks[f"^{re.escape(each.path)}"] = rank
            found[f"{each.path}.lora_{label[-1].upper()}.weight"] = one
    alphas: dict[str, float] = {**ranks}
    config = PeftConfig(
        peft_type="LORA", r=1, lora_alpha=1, rank_pattern=ranks, alpha_pattern=alphas
    )
    return config, found


def _gguf_tensors(path: Path) -> tuple[float, dict[str, Any]]:
    """Return alpha and the values of each tensor in a GGUF file."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    try:
        reader = GGUFReader(path)
        field = reader.get_field("adapter.lora.alpha")
        alpha = float(field.contents()) if field is not None else 0.0
        return alpha, {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise AdapterError(codes.BROKEN_FILE(path=path, reason=one_line(error))) from error
