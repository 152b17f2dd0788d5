"""A LoRA of PEFT as an adapter of bishare: an exact spec, each module's pair a pool of its own."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import AdapterError, one_line
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.peft import CONFIG, TENSORS
from bishare_dsl.models.site import Architecture, Site
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.spec import (
    ATTRIBUTES,
    And,
    Expression,
    Match,
    Member,
    Range,
    Ref,
    Selection,
    Settings,
    Share,
    Spec,
)

if TYPE_CHECKING:
    import torch

# What makes of a LoRA something else, or changes the base; PEFT's words.
_REFUSED = (
    "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters",
    "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config",
    "kasa_config", "monteclora_config",
)  # fmt: skip
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_(?:([AB])\.weight|embedding_([AB]))")


@dataclass(frozen=True)
class _Group:
    """Modules of one rank and scale."""

    rank: int
    scale: float
    sites: tuple[Site, ...]


def base_of(folder: str | os.PathLike[str]) -> str | None:
    """Return the base that a LoRA of PEFT names.

    Raises:
        AdapterError: its config cannot be read (BS608).
    """
    name = _config(Path(folder)).get("base_model_name_or_path")
    return name if isinstance(name, str) else None


def read_peft(
    folder: str | os.PathLike[str], architecture: Architecture
) -> tuple[Spec, Plan, dict[str, torch.Tensor]]:
    """Read a LoRA of PEFT as a spec, its plan and the plan's tensors, which add to each module what it adds.

    A share for each rank and scale that there is. Values become float32, which holds them all.

    Args:
        folder: that PEFT has written.
        architecture: of the base.

    Raises:
        AdapterError: the LoRA cannot be read (BS608), is more than a plain one (BS656), or is of another
            base (BS613).
    """
    folder = Path(folder)
    config = _config(folder)
    _check_plain(folder, config)
    pairs = _pairs(folder, config, architecture)
    groups: dict[tuple[int, float], list[Site]] = {}
    for site, (down, _, scale) in pairs.items():
        groups.setdefault((len(down), scale), []).append(site)
    found = [_Group(rank, scale, tuple(sites)) for (rank, scale), sites in groups.items()]
    spec = _spec(found, float(config.get("lora_dropout") or 0), architecture)
    plan, _ = build_plan(spec, architecture)
    tensors = {}
    for site, (down, up, _) in pairs.items():
        (term,) = plan.terms_of[site.path]
        tensors[term.tensors["A"]] = down.float()
        tensors[term.tensors["B"]] = up.t().float().contiguous()
    return spec, plan, tensors


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(codes.BROKEN_FILE(path=path, reason=one_line(error))) from error
    if not isinstance(config, dict):
        raise AdapterError(codes.BROKEN_FILE(path=path, reason="it is not a JSON object"))
    return config


def _check_plain(folder: Path, config: Mapping[str, Any]) -> None:
    start = config.get("init_lora_weights")
    reasons = [f"it has `{name}`" for name in _REFUSED if config.get(name)]
    if config.get("peft_type") != "LORA":
        reasons.append(f"its `peft_type` is {config.get('peft_type')}")
    if config.get("bias", "none") != "none":
        reasons.append("it has `bias`")
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        reasons.append(f"`init_lora_weights` is {start}, which changes the base")
    if reasons:
        raise AdapterError(codes.NOT_PLAIN_LORA(folder=folder, reason=reason) for reason in reasons)


def _pairs(
    folder: Path, config: Mapping[str, Any], architecture: Architecture
) -> dict[Site, tuple[torch.Tensor, torch.Tensor, float]]:
    """Return A ``(rank, d_in)``, B ``(d_out, rank)`` and the scale of each module, in the model's order."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / TENSORS
    try:
        tensors = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise AdapterError(codes.BROKEN_FILE(path=path, reason=one_line(error))) from error
    factors: dict[str, dict[str, torch.Tensor]] = {}
    kept = {
        f"base_model.model.{path}.base_layer.weight"
        for site in architecture.outside
        for path in site.paths
    }
    for name, tensor in tensors.items():
        if name in kept:
            continue  # PEFT keeps the base's own weight, frozen, for a vocabulary that has grown.
        if (match := _TENSOR.fullmatch(name)) is None:
            reason = f"`{name}` is not a factor of a linear layer"
            raise AdapterError(codes.NOT_PLAIN_LORA(folder=folder, reason=reason))
        factors.setdefault(match[1], {})[match[2] or match[3]] = tensor
    if not factors:
        raise AdapterError(codes.BROKEN_FILE(path=path, reason="there are no tensors in it"))
    _join_tied(folder, factors, architecture)
    sites = {site.path: site for site in architecture.every_site}
    base = config.get("base_model_name_or_path") or "another base"
    found = {}
    for module, pair in sorted(factors.items()):
        shapes = [tuple(pair[label].shape) if label in pair else () for label in "AB"]
        try:
            rank, scale = _settings(config, module)
        except (ValueError, TypeError, ZeroDivisionError, re.error) as error:
            reason = f"rank and alpha of `{module}`: {one_line(error)}"
            raise AdapterError(codes.BROKEN_FILE(path=folder / CONFIG, reason=reason)) from error
        if module not in sites:
            reason = f"it has no linear layer `{module}`"
            raise AdapterError(codes.OTHER_BASE(base=base, model=architecture.name, reason=reason))
        site = sites[module]
        if shapes != [(rank, site.d_in), (site.d_out, rank)]:
            reason = (
                f"`{module}` maps {site.d_in} features to {site.d_out} in it, and the LoRA of rank {rank} "
                f"has factors {shapes[0]} and {shapes[1]}"
            )
            raise AdapterError(codes.OTHER_BASE(base=base, model=architecture.name, reason=reason))
        found[site] = (pair["A"], pair["B"], scale)
    return {site: found[site] for site in architecture.every_site if site in found}


def _join_tied(
    folder: Path, factors: dict[str, dict[str, torch.Tensor]], architecture: Architecture
) -> None:
    """Keep of modules that have one weight the first, where the LoRA adds the same to all of them."""
    for site in architecture.outside:
        own, others = factors.get(site.path), [factors.pop(path, None) for path in site.tied]
        alike = (own and other and _same_update(own, other) for other in others)
        if (own or any(others)) and not all(alike):
            paths = " and ".join(f"`{path}`" for path in site.paths)
            reason = f"{paths} are one weight in {architecture.name}, and it does not add the same to all"
            raise AdapterError(codes.NOT_PLAIN_LORA(folder=folder, reason=reason))


def _same_update(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Return whether two pairs add the same to one weight: as an embedding's, A and B change places."""
    import torch

    pairs = ((pair.get("A"), pair.get("B")) for pair in (one, other))
    (a, b), (other_a, other_b) = pairs
    if a is None or b is None or other_a is None or other_b is None:
        return False
    return (torch.equal(a, other_a) and torch.equal(b, other_b)) or (
        torch.equal(a, other_b.t()) and torch.equal(b, other_a.t())
    )


def _settings(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Return rank and scale of a module, by PEFT's rule: the first pattern that fits its path's end."""

    def of(pattern: str, default: str) -> Any:
        for key, value in (config.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        return config.get(default, 8)  # As PEFT has it.

    rank, alpha = int(of("rank_pattern", "r")), float(of("alpha_pattern", "lora_alpha"))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return rank, int(scale) if scale.is_integer() else scale


def _spec(groups: Sequence[_Group], dropout: float, architecture: Architecture) -> Spec:
    everything = tuple(part for group in groups for part in selection_of(group.sites, architecture))
    return Spec(
        name="imported",
        target=Selection(include=tuple(dict.fromkeys(everything))),
        defaults=Settings(dropout=dropout) if dropout else Settings(),
        shares=tuple(
            Share(
                name="lora" if len(groups) == 1 else f"lora_{i}",
                per=(Ref(ref="module"),),
                rank=group.rank,
                scale=group.scale,
                where=None
                if len(groups) == 1
                else Selection(include=selection_of(group.sites, architecture)),
            )
            for i, group in enumerate(groups, 1)
        ),
    )


def selection_of(sites: Sequence[Site], architecture: Architecture) -> tuple[Expression, ...]:
    """Return what selects these sites of a model and no others: kinds, kinds in layers, or paths."""
    parts: list[Expression] = []
    chosen = set(sites)
    for kind in dict.fromkeys(site.kind for site in sites if site.layer is not None):
        of_kind = [site for site in architecture.sites if site.kind == kind]
        layers = sorted({site.block for site in of_kind if site in chosen})
        condition = is_kind(kind)
        if chosen.issuperset(of_kind):
            parts.append(condition)
        elif chosen.issuperset(site for site in of_kind if site.block in layers):
            among = Member(value=Ref(ref="layer"), among=_ranges(layers))
            parts.append(And(all_of=(condition, among)))
        else:
            parts += [
                Match(attribute="path", pattern=site.path) for site in of_kind if site in chosen
            ]
    for site in sites:
        for path in site.paths if site.layer is None else ():
            kind = path.rpartition(".")[2]
            named = kind not in architecture.kinds
            parts.append(is_kind(kind) if named else Match(attribute="path", pattern=path))
    return tuple(parts)


def is_kind(kind: str) -> Expression:
    """Return the condition that a site is of a kind."""
    if kind.isidentifier() and kind not in ATTRIBUTES:
        return Ref(ref=kind)
    return Match(attribute="kind", pattern=kind)


def _ranges(layers: Sequence[int]) -> tuple[Range | int, ...]:
    """Write rising numbers as ranges: those that follow each other are one."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return tuple(Range(first=a, last=b) if a < b else a for a, b in runs)
