"""A LoRA of PEFT as an adapter of bishare: an exact spec, each module's pair a pool of its own.

What PEFT has trained in full beside it (``modules_to_save``, ``bias``) is what the spec trains in full.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import AdapterError, PlanError, one_line
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.peft import CONFIG, TENSORS
from bishare_dsl.models.site import Architecture, Site, most_parameters
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.plan.train import NONE
from bishare_dsl.reading import MAX_CONFIG, read_file
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
    "use_dora", "lora_bias", "trainable_token_indices", "target_parameters",
    "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config",
    "kasa_config", "monteclora_config",
)  # fmt: skip
_BYTES_EACH = 8
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_TENSOR = re.compile(r"(.+)\.lora_(?:([AB])\.weight|embedding_([AB]))")


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

    A share for each rank and scale that there is, and ``train`` for what PEFT has saved whole. Values become
    float32, which holds them all.

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
    tensors = _stored(folder, architecture)
    saved = _saved(folder, config, tensors, architecture)
    pairs = _pairs(folder, config, tensors, architecture)
    if not pairs and not saved:
        raise AdapterError(
            codes.BROKEN_FILE(path=folder / TENSORS, reason="there are no tensors in it")
        )
    groups: dict[tuple[int, float], list[Site]] = {}
    for site, (down, _, scale) in pairs.items():
        groups.setdefault((len(down), scale), []).append(site)
    found = [_Group(rank, scale, tuple(sites)) for (rank, scale), sites in groups.items()]
    spec = _spec(found, float(config.get("lora_dropout") or 0), architecture)
    spec, plan = _trained(spec, saved, architecture)
    values = {
        trained.tensor: saved[trained.parameter].float().reshape(plan.tensor[trained.tensor].shape)
        for trained in plan.trained
        if trained.parameter in saved
    }
    for site, (down, up, _) in pairs.items():
        (term,) = plan.terms_of[site.path]
        values[term.tensors["A"]] = down.float()
        values[term.tensors["B"]] = up.t().float().contiguous()
    return spec, plan, values


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(read_file(folder, CONFIG, MAX_CONFIG))
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
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        reasons.append(f"`init_lora_weights` is {start}, which changes the base")
    if reasons:
        raise AdapterError(codes.NOT_PLAIN_LORA(folder=folder, reason=reason) for reason in reasons)


def _stored(folder: Path, architecture: Architecture) -> dict[str, torch.Tensor]:
    """Return the tensors of a folder by their names, each without what PEFT puts before it."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / TENSORS
    try:
        tensors = load(read_file(folder, TENSORS, _BYTES_EACH * most_parameters(architecture)))
    except (OSError, SafetensorError) as error:
        raise AdapterError(codes.BROKEN_FILE(path=path, reason=one_line(error))) from error
    return {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}


def _saved(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    architecture: Architecture,
) -> dict[str, torch.Tensor]:
    """Return the values of parameters that PEFT has trained in full, by their paths in the base."""
    others = {path: other for other in architecture.others for path in other.paths}
    whole = _whole(config)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in sorted(tensors.items()):
        path = name.replace(".base_layer.", ".")
        if _TENSOR.fullmatch(name) or (path != name and not whole(path)):
            continue  # PEFT keeps the base's own weight, frozen, for a vocabulary that has grown.
        if path not in others:
            reason = f"`{name}` is neither a factor of a linear layer nor a parameter that `train` can name"
            raise AdapterError(codes.NOT_PLAIN_LORA(folder=folder, reason=reason))
        if tuple(tensor.shape) != others[path].shape:
            reason = (
                f"`{path}` is {others[path].shape} in it, and {tuple(tensor.shape)} in the LoRA"
            )
            base = config.get("base_model_name_or_path") or "another base"
            raise AdapterError(codes.OTHER_BASE(base=base, model=architecture.name, reason=reason))
        found[path] = tensor
    for other in {others[path].path: others[path] for path in found}.values():
        values = [found[path] for path in other.paths if path in found]
        if len(values) < len(other.paths) or not all(v.equal(values[0]) for v in values):
            paths = " and ".join(f"`{path}`" for path in other.paths)
            reason = (
                f"{paths} are one parameter in {architecture.name}, and its values of them differ"
            )
            raise AdapterError(codes.NOT_PLAIN_LORA(folder=folder, reason=reason))
    return {other.path: found[other.path] for other in architecture.others if other.path in found}


def _whole(config: Mapping[str, Any]) -> Callable[[str], bool]:
    """Tell what of a wrapped module's own is trained: its bias, where the config says so."""
    biases = config.get("bias", "none") != "none"
    return lambda path: biases and "bias" in path.rpartition(".")[2]


def _trained(
    spec: Spec, saved: Mapping[str, torch.Tensor], architecture: Architecture
) -> tuple[Spec, Plan]:
    """Return a spec that trains these parameters too, and its plan: named by kind, else each by its path."""
    if not saved:
        exact = NONE if architecture.head else None
    else:
        paths = [path for o in architecture.others if o.path in saved for path in o.paths]
        exact = Selection(include=tuple(Match(attribute="path", pattern=path) for path in paths))
        short = spec.model_copy(update={"train": _train_of(saved, architecture)})
        with suppress(PlanError):
            plan, _ = build_plan(short, architecture)
            found = {trained.parameter for trained in plan.trained}
            if saved.keys() <= found <= {*saved, *architecture.head}:
                return short, plan
    spec = spec.model_copy(update={"train": exact})
    return spec, build_plan(spec, architecture)[0]


def _train_of(saved: Collection[str], architecture: Architecture) -> Selection:
    """Return what selects these parameters: all biases, all of a kind, and paths."""
    parts: list[Expression] = []
    left = [other for other in architecture.others if other.path in saved]
    biases = [other for other in architecture.others if other.path.endswith("bias")]
    if biases and all(other in left for other in biases):
        parts.append(Ref(ref="biases"))
        left = [other for other in left if other not in biases]
    kinds = {path: path.split(".")[-2:][0] for other in left for path in other.paths}
    for other in left:
        for path in other.paths:
            kind = kinds[path]
            alike = (
                o for o in architecture.others if kind in (p.split(".")[-2:][0] for p in o.paths)
            )
            whole = kind not in architecture.kinds and all(o.path in saved for o in alike)
            parts.append(is_kind(kind) if whole else Match(attribute="path", pattern=path))
    return Selection(include=tuple(dict.fromkeys(parts)))


def _pairs(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    architecture: Architecture,
) -> dict[Site, tuple[torch.Tensor, torch.Tensor, float]]:
    """Return A ``(rank, d_in)``, B ``(d_out, rank)`` and the scale of each module, in the model's order."""
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _TENSOR.fullmatch(name):
            factors.setdefault(match[1], {})[match[2] or match[3]] = tensor
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
        target=Selection(include=tuple(dict.fromkeys(everything))) if groups else None,
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
