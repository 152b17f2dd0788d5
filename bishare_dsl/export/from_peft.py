"""Convert a LoRA of PEFT to an adapter of bishare: an exact spec with a private pool for each pair.

The spec also trains in full what PEFT trained in full (``modules_to_save``, ``bias``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import AdapterError, Problem, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.experts import Stacked, stacked_in
from bishare_dsl.export.layouts import FACTOR, expand_experts, read_lora
from bishare_dsl.export.peft import TENSORS
from bishare_dsl.export.peft_config import PeftConfig, read_config
from bishare_dsl.models.site import Architecture, Site, runs_of
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.plan.in_full import NONE

if TYPE_CHECKING:
    import torch
    from torch import nn

PREFIX = "base_model.model."
"""PEFT's prefix for the names of the base's modules."""

_VECTOR = re.compile(r"(.+)\.lora_magnitude_vector(?:\.weight)?")


def read_peft(
    folder: str | os.PathLike[str],
    architecture: Architecture,
    model: Callable[[], nn.Module] | None = None,
) -> tuple[m.Spec, Plan, dict[str, torch.Tensor]]:
    """Read a LoRA of PEFT as a spec, its plan and tensors with the same update.

    The spec has a share for each rank and scale, ``train`` for modules that PEFT saved whole, and
    ``magnitude`` for DoRA. Values become float32, which is lossless.

    Args:
        folder: the folder written by PEFT.
        architecture: the architecture of the base.
        model: returns the base, for a LoRA on parameters of experts, whose layout is not part of the
            architecture. It may be on the meta device, except for a DoRA.

    Raises:
        AdapterError: the LoRA cannot be read (BS608), lacks a module (BS609), is not plain (BS656), or
            belongs to another base (BS613); or it is a DoRA and a weight is missing (BS624).
        PlanError: it is a DoRA on a module without an output to scale (BS323).
    """
    folder = Path(folder)
    config, tensors = read_lora(folder, architecture, model)
    config.check_plain(folder)
    saved = _saved(folder, config, tensors, architecture)
    pairs = _pairs(folder, config, tensors, architecture, model)
    if not pairs and not saved:
        raise AdapterError(
            codes.BROKEN_FILE(path=folder / TENSORS, reason="there are no tensors in it")
        )
    groups: dict[tuple[int, float], list[Site]] = {}
    for site, (down, _, scale) in pairs.items():
        groups.setdefault((len(down), scale), []).append(site)
    spec = _spec(_name(folder), groups, config.lora_dropout, architecture)
    if config.use_dora:
        statement = m.magnitude((m.Ref(ref="module"),))
        spec = spec.model_copy(update={"shares": (*spec.shares, statement)})
    spec, plan = _trained(spec, saved, architecture)
    values = {
        trained.tensor: saved[trained.parameter].float().reshape(plan.tensor[trained.tensor].shape)
        for trained in plan.trained
        if trained.parameter in saved
    }
    for site, (down, up, _) in pairs.items():
        term = plan.terms_of[site.path][0]
        values[term.tensors["A"]] = down.float()
        values[term.tensors["B"]] = up.t().float().contiguous()
    if config.use_dora:
        values |= _relative(folder, plan, tensors, architecture, model)
    return spec, plan, values


def _relative(
    folder: Path,
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    architecture: Architecture,
    model: Callable[[], nn.Module] | None,
) -> dict[str, torch.Tensor]:
    """Return ``mu = m / |W_i| - 1`` of a DoRA's modules, by the names of the plan's tensors."""
    from bishare_dsl.models.inspect import linear_maps
    from bishare_dsl.models.weights import row_norms

    if model is None:
        reason = f"it is a DoRA, which is relative to the weights of {architecture.name}"
        raise AdapterError(codes.NOT_PLAIN_LORA(folder=folder, reason=reason))
    vectors = {match[1]: t for name, t in tensors.items() if (match := _VECTOR.fullmatch(name))}
    maps, found, problems = linear_maps(model()), {}, []
    for site in plan.sites:
        weight, term, m = maps[site.path], plan.magnitude(site.path), vectors.get(site.path)
        kept = weight.kept()
        if m is None or m.numel() != site.d_out:
            problems.append(codes.MISSING_TENSOR(name=f"{site.path}.lora_magnitude_vector"))
        elif kept is not None and kept.is_meta:
            reason = "a DoRA needs it, and it is on the meta device"
            problems.append(codes.NO_WEIGHT(path=site.path, reason=reason))
        elif term is not None:
            norms = row_norms(weight.module).double()
            mu = (m.to(norms).view(-1) / norms - 1).where(norms > 0, 0)
            found[term.tensors["mu"]] = mu.float().view(1, -1).cpu()
    raise_errors(AdapterError, problems[:5])
    return found


def _saved(
    folder: Path,
    config: PeftConfig,
    tensors: Mapping[str, torch.Tensor],
    architecture: Architecture,
) -> dict[str, torch.Tensor]:
    """Return the values of parameters that PEFT trained in full, by their paths in the base."""
    others = {path: other for other in architecture.others for path in other.paths}
    found: dict[str, torch.Tensor] = {}
    for name, tensor in sorted(tensors.items()):
        path = name.replace(".base_layer.", ".")
        # Only the bias of a wrapped module is trained, if the config says so.
        trained = path == name or (config.bias != "none" and "bias" in path.rpartition(".")[2])
        vector = config.use_dora and _VECTOR.fullmatch(name)
        if FACTOR.fullmatch(name) or vector or not trained:
            continue  # For an extended vocabulary, PEFT also saves the frozen base weight.
        if path not in others:
            reason = f"`{name}` is neither a factor of a linear layer nor a parameter that `train` can name"
            raise AdapterError(codes.NOT_PLAIN_LORA(folder=folder, reason=reason))
        if tuple(tensor.shape) != others[path].shape:
            reason = (
                f"`{path}` is {others[path].shape} in it, and {tuple(tensor.shape)} in the LoRA"
            )
            raise AdapterError(
                codes.OTHER_BASE(base=config.base, model=architecture.name, reason=reason)
            )
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


def _trained(
    spec: m.Spec, saved: Mapping[str, torch.Tensor], architecture: Architecture
) -> tuple[m.Spec, Plan]:
    """Extend a spec to train these parameters in full, each by its path; return it with its plan."""
    train = NONE if architecture.head else None
    if saved:
        paths = [path for o in architecture.others if o.path in saved for path in o.paths]
        train = m.Selection(
            include=tuple(m.Match(attribute="path", pattern=path) for path in paths)
        )
    spec = spec.model_copy(update={"train": train})
    return spec, build_plan(spec, architecture)[0]


def _pairs(
    folder: Path,
    config: PeftConfig,
    tensors: Mapping[str, torch.Tensor],
    architecture: Architecture,
    model: Callable[[], nn.Module] | None,
) -> dict[Site, tuple[torch.Tensor, torch.Tensor, float]]:
    """Return A ``(rank, d_in)``, B ``(d_out, rank)`` and the scale of each module, in the model's order."""
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if match := FACTOR.fullmatch(name):
            factors.setdefault(match[1], {})[match[2] or match[3]] = tensor
    _join_tied(folder, factors, architecture)
    stacked = _stacked(folder, config, architecture, model)
    sites = {site.path: site for site in architecture.every_site}
    origins = expand_experts(factors, {*stacked, *sites}, model)
    raise_errors(AdapterError, [*_missing(config, factors, architecture)] if factors else [])
    named = {
        path: stacked[path].path if path in stacked else origins.get(path, path) for path in factors
    }
    settings = config.settings(folder, {*named.values()})
    found: dict[Site, tuple[torch.Tensor, torch.Tensor, float]] = {}

    def other_base(reason: str) -> AdapterError:
        return AdapterError(
            codes.OTHER_BASE(base=config.base, model=architecture.name, reason=reason)
        )

    for module, pair in sorted(factors.items()):
        rank, scale = settings[named[module]]
        if module in stacked:
            wanted = stacked[module].shapes(rank)
        elif module in sites:
            wanted = ((rank, sites[module].d_in), (sites[module].d_out, rank))
        else:
            raise other_base(f"it has no linear layer `{module}`")
        a, b = (tuple(pair[label].shape) if label in pair else () for label in "AB")
        if (a, b) != wanted:
            raise other_base(
                f"`{named[module]}` maps {wanted[0][1]} features to {wanted[1][0]} in it, and the LoRA of "
                f"rank {rank} has factors {a} and {b}"
            )
        given = [(module, pair["A"], pair["B"])]
        if module in stacked:
            given = [*stacked[module].split(pair["A"], pair["B"], rank)]
        found |= {sites[path]: (down, up, scale) for path, down, up in given}
    return {site: found[site] for site in architecture.every_site if site in found}


def _missing(
    config: PeftConfig, factors: Mapping[str, object], architecture: Architecture
) -> Iterator[Problem]:
    """Find modules that PEFT would adapt by name but that have no factors (BS609)."""
    settings = config.model_extra or {}
    targets = settings.get("target_modules")
    narrowed = settings.get("layers_to_transform") is not None or settings.get("exclude_modules")
    # PEFT renames targets in families whose experts are one parameter.
    if isinstance(targets, list) and not narrowed and not config.target_parameters:
        ends = tuple(f".{target}" for target in targets)
        by_experts = any(site.expert is not None for site in architecture.sites)
        for path in [] if by_experts else [site.path for site in architecture.every_site]:
            if f".{path}".endswith(ends) and path not in factors:
                yield codes.MISSING_TENSOR(name=f"{path}.lora_A.weight")


def _stacked(
    folder: Path,
    config: PeftConfig,
    architecture: Architecture,
    model: Callable[[], nn.Module] | None,
) -> dict[str, Stacked]:
    """Return the parameters of experts that PEFT wraps, by the paths of its wrappers."""
    if not config.target_parameters:
        return {}
    if model is None:
        reason = f"it adapts experts, and how {architecture.name} keeps them its shapes alone do not tell"
        raise AdapterError(codes.NOT_PLAIN_LORA(folder=folder, reason=reason))
    return stacked_in(model(), config.target_parameters)


def _join_tied(
    folder: Path, factors: dict[str, dict[str, torch.Tensor]], architecture: Architecture
) -> None:
    """Keep the first of several tied modules, if the LoRA's updates of all of them are equal."""
    for site in architecture.outside:
        own, others = factors.get(site.path), [factors.pop(path, None) for path in site.tied]
        alike = (own and other and _same_update(own, other) for other in others)
        if (own or any(others)) and not all(alike):
            paths = " and ".join(f"`{path}`" for path in site.paths)
            reason = f"{paths} are one weight in {architecture.name}, and it does not add the same to all"
            raise AdapterError(codes.NOT_PLAIN_LORA(folder=folder, reason=reason))


def _same_update(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Return whether two pairs have the same update of one weight; an embedding swaps A and B."""
    import torch

    pairs = ((pair.get("A"), pair.get("B")) for pair in (one, other))
    (a, b), (other_a, other_b) = pairs
    if a is None or b is None or other_a is None or other_b is None:
        return False
    return (torch.equal(a, other_a) and torch.equal(b, other_b)) or (
        torch.equal(a, other_b.t()) and torch.equal(b, other_a.t())
    )


def factors_in(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return A and B of each linear layer of a PEFT folder in float32, the scale folded into B.

    A is ``(rank, d_in)``, B ``(rank, d_out)``; the keys are the paths of the layers.
    """
    from safetensors.torch import load_file

    config = read_config(folder)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(folder / TENSORS).items():
        match = FACTOR.fullmatch(name.removeprefix(PREFIX))
        if match and match[2]:
            pairs.setdefault(match[1], {})[match[2]] = tensor.float()
    settings = config.settings(folder, pairs)
    return {
        path: (pair["A"], settings[path][1] * pair["B"].t())
        for path, pair in pairs.items()
        if len(pair) == 2
    }


def _name(folder: Path) -> str:
    """Name the spec after the folder, omitting invalid characters."""
    name = re.sub(r"\W+", "_", folder.resolve().name).strip("_")
    return name if name[:1].isalpha() and name.isascii() else f"imported_{name}".rstrip("_")


def _spec(
    name: str,
    groups: Mapping[tuple[int, float], Sequence[Site]],
    dropout: float,
    architecture: Architecture,
) -> m.Spec:
    """Write a share for the modules of each rank and scale."""
    selections = [selection_of(sites, architecture) for sites in groups.values()]
    everything = tuple(dict.fromkeys(part for parts in selections for part in parts))
    several = len(groups) > 1
    return m.Spec(
        name=name,
        target=m.Selection(include=everything) if groups else None,
        defaults=m.Settings(dropout=dropout) if dropout else m.Settings(),
        shares=tuple(
            m.Share(
                name=f"lora_{i}" if several else "lora",
                per=(m.Ref(ref="module"),),
                rank=rank,
                scale=scale,
                where=m.Selection(include=parts) if several else None,
            )
            for i, ((rank, scale), parts) in enumerate(zip(groups, selections, strict=True), 1)
        ),
    )


def selection_of(sites: Sequence[Site], architecture: Architecture) -> tuple[m.Expression, ...]:
    """Return a selector for exactly these sites of a model: kinds, kinds in layers, or paths."""
    parts: list[m.Expression] = []
    chosen = set(sites)
    for kind in dict.fromkeys(site.kind for site in sites if site.layer is not None):
        of_kind = [site for site in architecture.sites if site.kind == kind]
        layers = {site.block for site in of_kind if site in chosen}
        condition = _is_kind(kind)
        if chosen.issuperset(of_kind):
            parts.append(condition)
        elif chosen.issuperset(site for site in of_kind if site.block in layers):
            ranges = (m.Range(first=a, last=b) if a < b else a for a, b in runs_of(layers))
            among = m.Member(value=m.Ref(ref="layer"), among=tuple(ranges))
            parts.append(m.And(all_of=(condition, among)))
        else:
            parts += [
                m.Match(attribute="path", pattern=site.path) for site in of_kind if site in chosen
            ]
    others = [path for site in architecture.outside if site not in chosen for path in site.paths]
    kinds = {*architecture.kinds, *(path.rpartition(".")[2] for path in others)}
    for site in sites:
        for path in site.paths if site.layer is None else ():
            kind = path.rpartition(".")[2]
            unlike = kind not in kinds
            parts.append(_is_kind(kind) if unlike else m.Match(attribute="path", pattern=path))
    return tuple(dict.fromkeys(parts))


def _is_kind(kind: str) -> m.Expression:
    """Return the condition that selects a kind of site."""
    if kind.isidentifier() and kind not in m.ATTRIBUTES:
        return m.Ref(ref=kind)
    return m.Match(attribute="kind", pattern=kind)
