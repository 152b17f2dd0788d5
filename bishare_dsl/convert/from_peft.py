"""Convert a LoRA of PEFT to an adapter of bishare: an exact spec with a private pool for each pair.

The spec also trains in full what PEFT trained in full (``modules_to_save``, ``bias``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft.tuners.tuners_utils import check_target_module_exists

from bishare_dsl import spec as m
from bishare_dsl.convert.effective import delta, effective_factors
from bishare_dsl.convert.experts import Stacked, expand_experts, stacked_in
from bishare_dsl.convert.layouts import FACTOR, LAYOUTS
from bishare_dsl.convert.lora import product_norm
from bishare_dsl.convert.peft_config import CONFIG, TENSORS, PeftConfig, reading
from bishare_dsl.diagnostics import AdapterError, Problem, nearest, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.site import Architecture, Site, runs_of
from bishare_dsl.models.weights import row_norms
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.plan.in_full import NONE

if TYPE_CHECKING:
    from torch import nn

_VECTOR = re.compile(r"(.+)\.lora_magnitude_vector(?:\.weight)?")


@dataclass(frozen=True)
class _Source:
    """A LoRA that is read.

    Attributes:
        folder: its folder or file.
        config: PEFT's config of it.
        tensors: by PEFT's names.
        architecture: of the base.
        model: returns the base, if it is known.
    """

    folder: Path
    config: PeftConfig
    tensors: Mapping[str, torch.Tensor]
    architecture: Architecture
    model: Callable[[], nn.Module] | None

    def not_plain(self, reason: str) -> AdapterError:
        """Return the error for something that no spec expresses (BS656)."""
        return AdapterError(codes.NOT_PLAIN_LORA(folder=self.folder, reason=reason))

    def other_base(self, reason: str, help: str | None = None) -> AdapterError:
        """Return the error for a LoRA of another base (BS613)."""
        base, model = self.config.base, self.architecture.name
        return AdapterError(codes.OTHER_BASE(base=base, model=model, reason=reason, help=help))


def read_peft(
    folder: str | os.PathLike[str],
    architecture: Architecture,
    model: Callable[[], nn.Module] | None = None,
    layout: str = "peft",
) -> tuple[m.Spec, Plan, dict[str, torch.Tensor]]:
    """Read a LoRA of PEFT as a spec, its plan and tensors with the same update.

    The spec has a share for each rank and scale, ``train`` for modules that PEFT saved whole, and
    ``magnitude`` for DoRA. Values become float32, which is lossless.

    Args:
        folder: the folder written by PEFT.
        architecture: the architecture of the base.
        model: returns the base, for a LoRA on parameters of experts, whose layout is not part of the
            architecture. It may be on the meta device, except for a DoRA.
        layout: its row in the table of layouts; those with PEFT's files are read alike.

    Raises:
        AdapterError: the LoRA cannot be read (BS608), lacks a module (BS609), is not plain (BS656), or
            belongs to another base (BS613); it is a DoRA and a weight is missing (BS624); or the spec does
            not have its dW (BS607).
        PlanError: it is a DoRA on a module without an output to scale (BS323).
    """
    folder = Path(folder)
    config, tensors = LAYOUTS[layout].read(folder, architecture, model)
    config.check_plain(folder)
    source = _Source(folder, config, tensors, architecture, model)
    saved, pairs = _saved(source), _pairs(source)
    if not pairs and not saved:
        reason = "it contains no tensors"
        raise AdapterError(codes.BROKEN_FILE(path=folder / TENSORS, reason=reason))
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
    if {*plan.sites} != pairs.keys():
        raise _differs(folder, "the spec adapts other modules")
    for site, (down, up, scale) in pairs.items():
        term = plan.terms_of[site.path][0]
        values[term.tensors["A"]] = down.float()
        values[term.tensors["B"]] = up.t().float().contiguous()
        found = effective_factors(plan, values, site, scaled=True)
        both = zip(found, (down, scale * up.t()), strict=True)
        if not all(torch.allclose(a, b.float(), equal_nan=True) for a, b in both):
            raise _differs(folder, f"dW of `{site.path}` differs in the spec")
    if config.use_dora:
        values |= _relative(source, plan)
    return spec, plan, values


def _relative(source: _Source, plan: Plan) -> dict[str, torch.Tensor]:
    """Return ``mu = m / |W_i| - 1`` of a DoRA's modules, by the names of the plan's tensors."""
    if source.model is None:
        name = source.architecture.name
        raise source.not_plain(f"it is a DoRA, which is relative to the weights of {name}")
    matches = ((_VECTOR.fullmatch(name), tensor) for name, tensor in source.tensors.items())
    vectors = {match[1]: tensor for match, tensor in matches if match}
    missing = [
        codes.MISSING_TENSOR(name=f"{site.path}.lora_magnitude_vector")
        for site in plan.sites
        if site.path not in vectors or vectors[site.path].numel() != site.d_out
    ]
    raise_errors(AdapterError, missing[:5])
    maps, magnitudes = linear_maps(source.model()), dict[str, torch.Tensor]()
    for site in plan.sites:
        weight, term = maps[site.path], plan.magnitude(site.path)
        stored = weight.stored()
        if stored is not None and stored.is_meta:
            reason = "a DoRA needs it, and it is on the meta device"
            raise AdapterError(codes.NO_WEIGHT(path=site.path, reason=reason))
        if term is not None:
            norms = row_norms(weight.module).double()
            mu = (vectors[site.path].to(norms).view(-1) / norms - 1).where(norms > 0, 0)
            magnitudes[term.tensors["mu"]] = mu.float().view(1, -1).cpu()
    return magnitudes


def _saved(source: _Source) -> dict[str, torch.Tensor]:
    """Return the values of parameters that PEFT trained in full, by their paths in the base."""
    config, architecture = source.config, source.architecture
    others = {path: other for other in architecture.others for path in other.paths}
    values_at: dict[str, torch.Tensor] = {}
    for name, tensor in sorted(source.tensors.items()):
        path = name.replace(".base_layer.", ".")
        # Only the bias of a wrapped module is trained, if the config says so.
        trained = path == name or (config.bias != "none" and "bias" in path.rpartition(".")[2])
        if FACTOR.fullmatch(name) or (config.use_dora and _VECTOR.fullmatch(name)) or not trained:
            continue  # For an extended vocabulary, PEFT also saves the frozen base weight.
        if path not in others:
            what = "neither a factor of a linear layer nor a parameter that `train` can name"
            raise source.not_plain(f"`{name}` is {what}")
        if tuple(tensor.shape) != others[path].shape:
            here, there = others[path].shape, tuple(tensor.shape)
            raise source.other_base(f"`{path}` is {here} in it, and {there} in the LoRA")
        values_at[path] = tensor
    for other in {others[path].path: others[path] for path in values_at}.values():
        values = [values_at[path] for path in other.paths if path in values_at]
        if len(values) < len(other.paths) or not all(v.equal(values[0]) for v in values):
            paths = " and ".join(f"`{path}`" for path in other.paths)
            one = f"are one parameter in {architecture.name}"
            raise source.not_plain(f"{paths} {one}, and its values of them differ")
    return {
        other.path: values_at[other.path]
        for other in architecture.others
        if other.path in values_at
    }


def _trained(
    spec: m.Spec, saved: Mapping[str, torch.Tensor], architecture: Architecture
) -> tuple[m.Spec, Plan]:
    """Extend a spec to train these parameters in full, each by its path; return it with its plan."""
    train = NONE if architecture.head else None
    if saved:
        parts: list[m.Expression] = []
        for other in (other for other in architecture.others if other.path in saved):
            # A tied parameter has its first path, and `train` must name all of its modules.
            path = m.Match(attribute="path", pattern=other.path)
            kinds = dict.fromkeys(path.rsplit(".", 2)[-2] for path in other.tied)
            parts += [path, *(m.And(all_of=(_is_kind(kind), path)) for kind in kinds)]
        train = m.Selection(include=tuple(parts))
    spec = spec.model_copy(update={"train": train})
    return spec, build_plan(spec, architecture)[0]


def _pairs(source: _Source) -> dict[Site, tuple[torch.Tensor, torch.Tensor, float]]:
    """Return A ``(rank, d_in)``, B ``(d_out, rank)`` and the scale of each module, in the model's order."""
    config, architecture = source.config, source.architecture
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in source.tensors.items():
        if match := FACTOR.fullmatch(name):
            factors.setdefault(match[1], {})[match[2] or match[3]] = tensor
    _join_tied(source, factors)
    stacked = _stacked(source)
    sites = {site.path: site for site in architecture.every_site}
    origins = expand_experts(factors, {*stacked, *sites}, source.model)
    if unknown := [path for path in factors if path not in stacked and path not in sites]:
        # A prefix that another program adds is long, but the path ends as the model's.
        name = unknown[0][::-1]
        end = max(sites, key=lambda path: len(os.path.commonprefix([path[::-1], name])))  # noqa: RUF071
        near = nearest(unknown[0], sites) or f"it may be `{end}` there"
        raise source.other_base(
            f"it lacks {len(unknown)} of the {len(factors)} adapted modules, such as `{unknown[0]}`",
            near,
        )
    raise_errors(AdapterError, [*_unlike(source, factors)] if factors else [])
    named = {
        path: stacked[path].path if path in stacked else origins.get(path, path) for path in factors
    }
    settings = config.settings(source.folder, {*named.values()})
    pairs: dict[Site, tuple[torch.Tensor, torch.Tensor, float]] = {}
    for module, pair in sorted(factors.items()):
        rank, scale = settings[named[module]]
        site = sites.get(module)
        wanted = ((rank, site.d_in), (site.d_out, rank)) if site else stacked[module].shapes(rank)
        a, b = (tuple(pair[label].shape) if label in pair else () for label in "AB")
        if (a, b) != wanted:
            raise source.other_base(
                f"`{named[module]}` maps {wanted[0][1]} features to {wanted[1][0]} in it, and the LoRA of "
                f"rank {rank} has factors {a} and {b}"
            )
        parts = [(module, pair["A"], pair["B"])]
        if module in stacked:
            parts = [*stacked[module].split(pair["A"], pair["B"], rank)]
        pairs |= {sites[path]: (down, up, scale) for path, down, up in parts}
    return {site: pairs[site] for site in architecture.every_site if site in pairs}


def _unlike(source: _Source, factors: Mapping[str, object]) -> Iterator[Problem]:
    """Find modules that PEFT adapts and that have no factors (BS609), and factors that it drops (BS656)."""
    config, sites = source.config, source.architecture.every_site
    # PEFT renames targets in families whose experts are one parameter.
    if config.target_parameters or any(site.expert is not None for site in sites):
        return
    with reading(source.folder / CONFIG):
        if (chooser := config.chooser()) is None:
            return
        chosen = [site.path for site in sites if check_target_module_exists(chooser, site.path)]
    if isinstance(chooser.target_modules, list):
        missing = [path for path in chosen if path not in factors]
        yield from (codes.MISSING_TENSOR(name=f"{path}.lora_A.weight") for path in missing)
    for path in sorted(factors.keys() - chosen)[:1]:
        reason = f"PEFT drops the factors of `{path}`, which {chooser.why} in its config leaves out"
        help = "if a server uses them, write what selects them on this base in a copy"
        yield codes.NOT_PLAIN_LORA(folder=source.folder, reason=reason, help=help)


def _stacked(source: _Source) -> dict[str, Stacked]:
    """Return the parameters of experts that PEFT wraps, by the paths of its wrappers."""
    if not source.config.target_parameters:
        return {}
    if source.model is None:
        name = source.architecture.name
        why = f"how {name} keeps them its shapes alone do not tell"
        raise source.not_plain(f"it adapts experts, and {why}")
    return stacked_in(source.model(), source.config.target_parameters)


def _join_tied(source: _Source, factors: dict[str, dict[str, torch.Tensor]]) -> None:
    """Keep the first of several tied modules, if the LoRA's updates of all of them are equal."""
    for site in source.architecture.outside:
        own, others = factors.get(site.path), [factors.pop(path, None) for path in site.tied]
        alike = (own and other and _same_update(own, other) for other in others)
        if (own or any(others)) and not all(alike):
            paths = " and ".join(f"`{path}`" for path in site.paths)
            name = source.architecture.name
            one = f"are one weight in {name}"
            raise source.not_plain(f"{paths} {one}, and it does not add the same to all")


def _same_update(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Return whether two pairs have the same update of one weight; an embedding swaps A and B."""
    if not one.keys() == other.keys() == {"A", "B"}:
        return False
    a, b, c, d = one["A"], one["B"], other["A"], other["B"]
    return any(a.equal(x) and b.equal(y) for x, y in ((c, d), (d.t(), c.t())))


_FLOAT32_TOLERANCE = 1e-5
"""The tolerance for dW after a float32 conversion, relative to its norm."""

_ROUNDING_OF_W = 2.0**-18
"""The relative error of the rows' lengths in float32, by which W' - W of a magnitude may differ too.

Lengths of 8,192 values in bfloat16 differ by 1e-6 from those of float64, and of 28,672 by 2.5e-6.
"""


def compare(
    folder: str | os.PathLike[str],
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    architecture: Architecture,
    model: Callable[[], nn.Module] | None = None,
    layout: str = "peft",
    bound: float = 0.0,
) -> dict[str, tuple[float, float]]:
    """Read a LoRA, and compare it with the adapter that it was written from, or that was made from it.

    Args:
        folder: the LoRA's folder or file.
        plan: the adapter's plan.
        tensors: its tensors.
        architecture, model, layout: as for `read_peft`.
        bound: the largest relative error of dW by which the two may differ.

    Returns:
        The Frobenius norm of dW, and of its difference, by the path of each module that the LoRA has. With
        a magnitude, dW is the whole change of the weight.

    Raises:
        AdapterError: dW or a parameter trained in full differs (BS607), or as `read_peft`.
    """
    _, lora, values = read_peft(folder, architecture, model, layout)
    both = ((plan, tensors), (lora, values))
    ours, theirs = ({s.path: s for s in p.sites if p.terms_of[s.path]} for p, _ in both)
    scaled = model is not None and (plan.has_magnitudes or lora.has_magnitudes)
    maps = linear_maps(model()) if model is not None and scaled else {}
    norms: dict[str, tuple[float, float]] = {}
    for path, site in (theirs | ours).items():
        if path not in theirs:
            raise _differs(folder, f"the adapter alone adapts `{path}`")
        norm = apart = floor = 0.0
        if path not in ours:
            # Layouts that have all experts have zeros for those that the adapter leaves alone.
            if lora.magnitude(path) or product_norm(*effective_factors(lora, values, site)):
                raise _differs(folder, f"the LoRA alone adapts `{path}`")
        elif any(p.magnitude(path) for p, _ in both):
            dense = maps[path].values().cpu()
            wanted, found = (delta(p, t, site, dense).cpu() for p, t in both)
            norm, apart = float(wanted.norm()), float((wanted - found).norm())
            floor = _ROUNDING_OF_W * float(dense.float().norm())
        else:
            (a, b), (c, d) = (effective_factors(p, t, site) for p, t in both)
            norm = product_norm(a.cpu(), b.cpu())
            apart = product_norm(torch.cat([a.cpu(), c]), torch.cat([b.cpu(), -d]))
        # Also if it is not a number.
        if not apart <= (bound + _FLOAT32_TOLERANCE) * (norm or 1) + floor:
            relative = apart / norm if norm else apart
            what = f"dW of `{path}` differs by {relative:.2g} of its norm {norm:.3g}"
            raise _differs(folder, what)
        norms[path] = norm, apart
    saved = {t.parameter: values[t.tensor] for t in lora.trained if t.tensor in values}
    for trained in (t for t in plan.trained if t.tensor in tensors):
        wanted = tensors[trained.tensor].detach().float().cpu().flatten()
        found = saved.get(trained.parameter, torch.empty(0)).flatten()
        if not found.equal(wanted):
            raise _differs(folder, f"`{trained.parameter}`, which is trained in full, differs")
    return norms


def _differs(folder: str | os.PathLike[str], reason: str) -> AdapterError:
    return AdapterError(codes.CHANGED_FILE(path=folder, reason=reason))


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
