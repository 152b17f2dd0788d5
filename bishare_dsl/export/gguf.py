"""Write a LoRA in GGUF for llama.cpp's ``--lora``.

Tensors have the names and layout of llama.cpp's converter, which permutes the rows of some weights.
llama.cpp scales by ``adapter.lora.alpha`` over the pair's rank. An alpha of 0 disables that, as needed for
varying ranks with scales folded into B.

The experts of a layer have one stacked pair for each kind, like their weights.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import nn

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.diagnostics.codes.train import NEEDS_PACKAGE
from bishare_dsl.export.effective import check_low_rank
from bishare_dsl.export.experts import of_all
from bishare_dsl.export.lora import Lora, Pair
from bishare_dsl.export.origin import CONFIG_FIELDS, Origin
from bishare_dsl.export.peft_config import BYTES_EACH, PeftConfig, reading
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.site import Architecture, Site, most_parameters
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


def _as_it_is(config: Any, site: Site) -> torch.Tensor | None:
    return None


_GGML = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_Order = Callable[[Any, Site], torch.Tensor | None]

FAMILIES: Mapping[str, tuple[str, _Order]] = {
    "llama": ("llama", _halves),
    "mistral": ("llama", _halves),
    "mixtral": ("llama", _halves),
    "qwen2": ("qwen2", _as_it_is),
    "qwen3": ("qwen3", _as_it_is),
    "qwen2_moe": ("qwen2moe", _as_it_is),
    "qwen3_moe": ("qwen3moe", _as_it_is),
    "olmoe": ("olmoe", _as_it_is),
    "gemma2": ("gemma2", _as_it_is),
    "gemma3_text": ("gemma3", _as_it_is),
    "smollm3": ("smollm3", _halves),
    "phi3": ("phi3", _as_it_is),
    "gpt2": ("gpt2", _as_it_is),
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
    if missing := [codes.GGUF_MODULE(path=path) for path, name in names.items() if name is None]:
        raise AdapterError(missing[:5])
    return {path: str(name) for path, name in names.items()}


def row_order(model: nn.Module, site: Site) -> torch.Tensor | None:
    """Return llama.cpp's order of a weight's rows; None if it is unchanged."""
    config: Any = model.config
    return FAMILIES[config.model_type][1](config, site)


def write_gguf(path: Path, lora: Lora) -> None:
    """Write a LoRA file of llama.cpp, in one step.

    Raises:
        AdapterError: a parameter is trained in full (BS686); or as `gguf_names`.
        OSError: the system refused.
    """
    plan, model, pairs = lora.plan, lora.model, lora.pairs
    check_low_rank(plan, "export the adapter in GGUF")
    sites = [site for site in plan.sites if plan.rows(site.path) or site.tied]
    names = gguf_names(sites, plan.base.layers, model)
    from gguf import GGMLQuantizationType, GGUFType, GGUFWriter, Keys
    from gguf.quants import quantize

    config: Any = model.config
    architecture, _ = FAMILIES[config.model_type]
    maps, written = linear_maps(model), 0
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "lora.gguf"
        writer = GGUFWriter(file, architecture)
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, 0.0)
        writer.add_name(plan.spec)
        _write_origin(writer, lora.origin)
        for of_weight in _by_weight(pairs, names):
            rows = row_order(model, of_weight[0].site)
            down, up = _factors(of_weight, maps)
            up = up if rows is None else up[..., rows]
            for label, factor in (("a", down), ("b", up.mT)):
                kind = GGMLQuantizationType[_GGML[factor.dtype]]
                values = quantize(factor.float().contiguous().numpy(), kind)
                name = f"{names[of_weight[0].name]}.lora_{label}"
                writer.add_tensor(name, values, raw_dtype=kind)
                written += values.nbytes
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        content = file.read_bytes()
        if len(content) < written:  # numpy ignores a full disk when it closes the file.
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        new_file(path, content)


def _weight_of(site: Site, maps: Mapping[str, Weight]) -> str:
    """Return the path of the llama.cpp weight of a site; experts share a weight."""
    weight = maps[site.path]
    return site.path if weight.expert is None else f"{weight.owner}.{site.kind}"


def _by_weight(pairs: Sequence[Pair], names: Mapping[str, str]) -> list[list[Pair]]:
    """Group pairs by llama.cpp's weight."""
    by_weight: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_weight.setdefault(names[pair.name], []).append(pair)
    return list(by_weight.values())


def _factors(
    pairs: Sequence[Pair], maps: Mapping[str, Weight]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A ``(rank, d_in)`` and B ``(rank, d_out)`` of a weight, preceded by an expert dimension."""
    first, weight = pairs[0], maps[pairs[0].name]
    if weight.expert is None:
        return first.down, first.up
    experts = len(weight.module.get_parameter(weight.parameter))
    numbered = {maps[pair.name].expert or 0: (pair.down, pair.up) for pair in pairs}
    return of_all(numbered, experts, first.site.d_in, first.site.d_out)


def read_gguf(
    path: Path, architecture: Architecture, base: Callable[[], nn.Module] | None
) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """Read a LoRA file of llama.cpp.

    Raises:
        AdapterError: it cannot be read (BS608), has unknown names (BS613), or there is no base (BS656).
    """
    if base is None:
        reason = "its names depend on the base's config"
        raise AdapterError(codes.NOT_PLAIN_LORA(folder=path, reason=reason))
    model = base()
    names = gguf_names(architecture.every_site, architecture.layers, model, strict=False)
    sites = {site.path: site for site in architecture.every_site}
    maps = linear_maps(model)
    by_weight: dict[str, list[Weight]] = {}
    for of, name in names.items():
        by_weight.setdefault(name, []).append(maps[of])
    factors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    family = FAMILIES[cast(Any, model).config.model_type][0]
    reader = _reader(path, BYTES_EACH * most_parameters(architecture))
    alpha, tensors = _gguf_tensors(path, reader, family)
    for name, values in tensors.items():
        weight, _, label = name.rpartition(".")
        maps_of, reason = by_weight.get(weight, []), ""
        if not maps_of or label not in ("lora_a", "lora_b"):
            reason = f"it has no weight `{name}`"
        elif not _fits(values.shape, label, sites[maps_of[0].path], maps_of):
            reason = f"it has no weight for `{name}` of shape {values.shape}"
        if reason:
            problem = codes.OTHER_BASE(base="another base", model=architecture.name, reason=reason)
            raise AdapterError(problem)
        factor = torch.from_numpy(values.copy())
        for weight_map in maps_of:
            part = factor if weight_map.expert is None else factor[weight_map.expert]
            rank = part.shape[0] if label == "lora_a" else part.shape[1]
            if label == "lora_b":
                part = part * (alpha / rank) if alpha else part
                if (rows := row_order(model, sites[weight_map.path])) is not None:
                    part = torch.empty_like(part).index_copy_(0, rows, part)
            ranks[f"^{re.escape(weight_map.path)}"] = rank
            factors[f"{weight_map.path}.lora_{label[-1].upper()}.weight"] = part
    alphas: dict[str, float] = {**ranks}
    config = PeftConfig(
        peft_type="LORA", r=1, lora_alpha=1, rank_pattern=ranks, alpha_pattern=alphas
    )
    return config, factors


def _fits(shape: tuple[int, ...], label: str, site: Site, weights: Sequence[Weight]) -> bool:
    """Tell whether a factor has the shape for a site, or for all experts of a layer."""
    if len(shape) < 2:
        return False
    *experts, rows, columns = shape
    rank, width = (rows, columns) if label == "lora_a" else (columns, rows)
    wanted = site.d_in if label == "lora_a" else site.d_out
    stacked = [] if weights[0].expert is None else [len(weights)]
    return rank > 0 and width == wanted and experts == stacked


def _reader(path: Path, limit: int) -> Any:
    """Open a GGUF file of at most ``limit`` bytes.

    Raises:
        AdapterError: it cannot be read (BS608).
    """
    from gguf import GGUFReader

    class Reader(GGUFReader):
        """Refuses to read beyond the end of the file, which gguf takes for empty values without an end."""

        def _get(self, offset: int, dtype: Any, count: int = 1, *order: Any, **named: Any) -> Any:
            values = super()._get(offset, dtype, count, *order, **named)
            if len(values) < count:
                raise ValueError("its header promises more than the file has")
            return values

    with reading(path):
        if (size := path.stat().st_size) > limit:
            raise ValueError(f"it has {size:,} bytes, and may have {limit:,}")
        reader = Reader(path)
        if sum(tensor.n_bytes for tensor in reader.tensors) > size:
            raise ValueError("its tensors overlap")
        return reader


def _gguf_tensors(path: Path, reader: Any, family: str) -> tuple[float, dict[str, Any]]:
    """Return alpha and the values of each tensor of an adapter for a family."""
    from gguf.quants import dequantize

    wanted = {"general.type": "adapter", "general.architecture": family}
    with reading(path):
        for key, value in wanted.items():
            if (found := _field(reader, key)) != value:
                raise ValueError(f"its `{key}` is {found}, and the base needs {value}")
        alpha = float(_field(reader, "adapter.lora.alpha") or 0.0)
        return alpha, {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}


def _field(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


_GENERAL = {
    "base_model_name_or_path": "general.base_model.0.name",
    "revision": "general.base_model.0.version",
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
    "language": "general.languages",
    "datasets": "general.datasets",
    "tags": "general.tags",
}
"""GGUF's keys for the fields of an `Origin`; it has none for the task."""


def _write_origin(writer: Any, origin: Origin) -> None:
    fields = {**origin.card, **origin.config}
    writer.add_base_model_count("base_model_name_or_path" in fields)
    for name, key in _GENERAL.items():
        if value := fields.get(name):
            (writer.add_array if isinstance(value, list) else writer.add_string)(key, value)


def read_gguf_origin(path: Path) -> Origin:
    """Return the origin of a GGUF file. Raises AdapterError as `_reader`."""
    reader = _reader(path, sys.maxsize)
    with reading(path):
        found = {name: _field(reader, key) for name, key in _GENERAL.items()}
    fields = {name: value for name, value in found.items() if value}
    config = {name: fields.pop(name) for name in CONFIG_FIELDS if name in fields}
    return Origin(config, fields)
