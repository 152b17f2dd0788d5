"""Write a LoRA in GGUF for llama.cpp's ``--lora``.

Tensors have the names and layout of llama.cpp's converter, which permutes the rows of some weights.
llama.cpp scales by ``adapter.lora.alpha`` over the pair's rank. An alpha of 0 disables that, as needed for
varying ranks with scales folded into B.

The experts of a layer have one stacked pair for each kind, like their weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bishare_dsl.convert.effective import check_low_rank
from bishare_dsl.convert.experts import of_all
from bishare_dsl.convert.lora import Lora, Pair
from bishare_dsl.convert.origin import Origin
from bishare_dsl.convert.peft_config import PeftConfig
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.diagnostics.codes.train import NEEDS_PACKAGE
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.site import Architecture, Site
from bishare_dsl.models.weights import Weight
from bishare_dsl.writing import new_file


def _halves(config: Any, site: Site) -> torch.Tensor | None:
    """llama.cpp rotates adjacent values in a head, transformers the two halves of a head."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    if site.kind not in heads:
        return None
    return torch.arange(site.d_out).view(heads[site.kind], 2, -1).mT.flatten()


def _grouped(config: Any, site: Site) -> torch.Tensor | None:
    """Reorder Falcon's groups of queries, keys and values to all queries, all keys, all values."""
    if site.kind != "query_key_value":
        return None
    many = config.new_decoder_architecture or not config.multi_query
    groups = config.num_kv_heads if many else 1
    rows = torch.arange(site.d_out).view(groups, config.num_attention_heads // groups + 2, -1)
    return torch.cat([part.flatten() for part in (rows[:, :-2], rows[:, -2], rows[:, -1])])


_GGML = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_Order = Callable[[Any, Site], torch.Tensor | None] | None

FAMILIES: Mapping[str, tuple[str, _Order]] = {
    "llama": ("llama", _halves),
    "mistral": ("llama", _halves),
    "mixtral": ("llama", _halves),
    "qwen2": ("qwen2", None),
    "qwen3": ("qwen3", None),
    "qwen2_moe": ("qwen2moe", None),
    "qwen3_moe": ("qwen3moe", None),
    "olmoe": ("olmoe", None),
    "gemma2": ("gemma2", None),
    "gemma3_text": ("gemma3", None),
    "smollm3": ("smollm3", _halves),
    "phi3": ("phi3", None),
    "gpt2": ("gpt2", None),
    "falcon": ("falcon", _grouped),
}
"""llama.cpp's architecture for a family, and its order of a weight's rows."""


def gguf_names(
    sites: Sequence[Site], layers: int, model: nn.Module, *, strict: bool = True
) -> dict[str, str]:
    """Return llama.cpp's weight names by module path.

    Args:
        sites: the modules.
        layers: the number of blocks in the base.
        model: the base.
        strict: whether a module without a name is an error; otherwise it is omitted.

    Raises:
        AdapterError: llama.cpp does not support the family (BS647) or a module (BS648); or the package
            `gguf` is not installed (BS735).
    """
    if find_spec("gguf") is None:
        help = "run `pip install 'bishare[gguf]'`"
        raise AdapterError(NEEDS_PACKAGE(what="writing GGUF", package="gguf", help=help))
    from gguf import MODEL_ARCH, get_tensor_name_map

    config: Any = getattr(model, "config", None)
    family = getattr(config, "model_type", type(model).__name__)
    if family not in FAMILIES:
        raise AdapterError(codes.GGUF_FAMILY(family=family, known=", ".join(sorted(FAMILIES))))
    known = get_tensor_name_map(MODEL_ARCH[FAMILIES[family][0].upper()], layers)
    maps = linear_maps(model)
    names = {
        site.path: known.get_name(f"{_weight_of(site, maps)}.weight", (".weight",))
        for site in sites
    }
    # llama.cpp has no LoRA for embeddings, and its files have no tied heads.
    names |= {s.path: None for s in sites if s.tied or maps[s.path].looks_up}
    if not strict:
        return {path: name for path, name in names.items() if name is not None}
    missing = [codes.GGUF_MODULE(path=path) for path, name in names.items() if name is None]
    if missing:
        raise AdapterError(missing[:5])
    return {path: str(name) for path, name in names.items()}


def row_order(model: nn.Module, site: Site) -> torch.Tensor | None:
    """Return llama.cpp's order of a weight's rows; None if it is unchanged."""
    config: Any = model.config
    order = FAMILIES[config.model_type][1]
    return order and order(config, site)


def write_gguf(path: Path, lora: Lora) -> None:
    """Write a LoRA file of llama.cpp, in one step.

    Raises:
        AdapterError: a parameter is trained in full (BS686); or as `gguf_names`.
        OSError: the system refused.
    """
    plan = lora.plan
    model = lora.model
    check_low_rank(plan, "export the adapter in GGUF")
    sites = [site for site in plan.sites if plan.rows(site.path) or site.tied]
    names = gguf_names(sites, plan.base.layers, model)
    from gguf import GGMLQuantizationType, GGUFType, GGUFWriter, Keys
    from gguf.gguf_writer import WriterState
    from gguf.quants import quantize

    architecture, _ = FAMILIES[cast(Any, model).config.model_type]
    maps = linear_maps(model)
    written = []
    writer = GGUFWriter(None, architecture)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, 0.0)
    _write_origin(writer, plan.spec, lora.origin)
    by_weight: dict[str, list[Pair]] = {}
    for pair in lora.pairs:
        by_weight.setdefault(names[pair.name], []).append(pair)
    for of_weight in by_weight.values():
        rows = row_order(model, of_weight[0].site)
        down, up = _factors(of_weight, maps)
        up = up if rows is None else up[..., rows]
        for label, factor in (("a", down), ("b", up.mT)):
            kind = GGMLQuantizationType[_GGML[factor.dtype]]
            written.append(quantize(factor.float().contiguous().numpy(), kind))
            name = f"{names[of_weight[0].name]}.lora_{label}"
            writer.add_tensor(name, written[-1], raw_dtype=kind)
    out = BytesIO()
    writer.fout = [cast(Any, out)]
    writer.state = WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_padding(out, out.tell())
    # `write_tensors_to_file` takes no file in memory, and ignores a full disk.
    for values in written:
        out.write(values.tobytes())
        writer.write_padding(out, values.nbytes)
    new_file(path, out.getvalue())


def _write_origin(writer: Any, name: str, origin: Origin) -> None:
    """Write the adapter's name and origin. GGUF has no field for the task."""
    from gguf import Metadata

    fields = {**origin.card, **origin.config}
    metadata = Metadata(name=name)
    for key in ("license", "license_name", "license_link"):
        setattr(metadata, key, fields.get(key) if isinstance(fields.get(key), str) else None)
    lists = {k: [v] if isinstance(v, str) else v for k, v in fields.items()}
    metadata.tags = lists.get("tags")
    metadata.languages = lists.get("language")
    metadata.datasets = [{"name": name} for name in lists.get("datasets", ())]
    named = {"name": "base_model_name_or_path", "version": "revision"}
    metadata.base_models = [{key: fields[field] for key, field in named.items() if field in fields}]
    metadata.set_gguf_meta_model(writer)


def _weight_of(site: Site, maps: Mapping[str, Weight]) -> str:
    """Return the path of the llama.cpp weight of a site; experts share a weight."""
    weight = maps[site.path]
    return site.path if weight.expert is None else f"{weight.owner}.{site.kind}"


def _factors(
    pairs: Sequence[Pair], maps: Mapping[str, Weight]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A ``(rank, d_in)`` and B ``(rank, d_out)`` of a weight, preceded by an expert dimension."""
    first = pairs[0]
    weight = maps[first.name]
    if weight.expert is None:
        return first.down, first.up
    experts = len(weight.module.get_parameter(weight.parameter))
    numbered = {maps[pair.name].expert or 0: (pair.down, pair.up) for pair in pairs}
    return of_all(numbered, experts, first.site.d_in, first.site.d_out)


def read_gguf(
    path: Path, architecture: Architecture, base: Callable[[], nn.Module] | None
) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """Read what `write_gguf` has just written, to compare it; files of others are not read."""
    assert base is not None
    from gguf import GGUFReader
    from gguf.quants import dequantize

    model = base()
    names = gguf_names(architecture.every_site, architecture.layers, model, strict=False)
    tensors = {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(path).tensors}
    maps = linear_maps(model)
    factors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for site in architecture.every_site:
        name = f"{names.get(site.path)}.lora"
        if f"{name}_a" not in tensors:
            continue
        down = torch.from_numpy(tensors[f"{name}_a"].copy())
        up = torch.from_numpy(tensors[f"{name}_b"].copy())
        expert = maps[site.path].expert
        if expert is not None:
            down = down[expert]
            up = up[expert]
        rows = row_order(model, site)
        if rows is not None:
            up = torch.empty_like(up).index_copy_(0, rows, up)
        ranks[f"^{re.escape(site.path)}"] = len(down)
        factors[f"{site.path}.lora_A.weight"] = down
        factors[f"{site.path}.lora_B.weight"] = up
    # Alpha is the rank, since scales are in B.
    config = PeftConfig(peft_type="LORA", rank_pattern=ranks, alpha_pattern={**ranks})
    return config, factors
