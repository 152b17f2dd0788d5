"""Convert a LoRA of PEFT to an adapter of bishare: an exact spec with a private pool for each pair.

The spec also trains in full what PEFT trained in full (``modules_to_save``, ``bias``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from bishare_dsl.models.weights import Weight, row_norms
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
        problem = codes.OTHER_BASE(
            base=self.config.base, model=self.architecture.name, reason=reason, help=help
        )
        return AdapterError(problem)


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
    saved = _saved(source)
    pairs = _pairs(source)
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
        fitted = effective_factors(plan, values, site, scaled=True)
        both = zip(fitted, (down, scale * up.t()), strict=True)
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
    vectors: dict[str, torch.Tensor] = {}
    for name, tensor in source.tensors.items():
        match = _VECTOR.fullmatch(name)
        if match:
            vectors[match[1]] = tensor
    missing = [
        codes.MISSING_TENSOR(name=f"{site.path}.lora_magnitude_vector")
        for site in plan.sites
        if site.path not in vectors or vectors[site.path].numel() != site.d_out
    ]
    raise_errors(AdapterError, missing[:5])
    maps = linear_maps(source.model())
    magnitudes: dict[str, torch.Tensor] = {}
    for site in plan.sites:
        weight = maps[site.path]
        term = plan.magnitude(site.path)
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
    others = {path: other for other in source.architecture.others for path in other.paths}
    values: dict[str, torch.Tensor] = {}
    for name, tensor in sorted(source.tensors.items()):
        if not _is_trained(name, source.config):
            continue
        path = name.replace(".base_layer.", ".")
        if path not in others:
            what = "neither a factor of a linear layer nor a parameter that `train` can name"
            raise source.not_plain(f"`{name}` is {what}")
        shape = tuple(tensor.shape)
        if shape != others[path].shape:
            raise source.other_base(
                f"`{path}` is {others[path].shape} in it, and {shape} in the LoRA"
            )
        values[path] = tensor
    for other in {others[path].path: others[path] for path in values}.values():
        _check_one_parameter(source, other.paths, values)
    return {
        other.path: values[other.path]
        for other in source.architecture.others
        if other.path in values
    }


def _is_trained(name: str, config: PeftConfig) -> bool:
    """Return whether a tensor is a parameter that PEFT trained in full.

    For an extended vocabulary, PEFT also saves the frozen weight of a wrapped module. Of these, only biases
    are trained, if the config says so.
    """
    if FACTOR.fullmatch(name):
        return False
    if config.use_dora and _VECTOR.fullmatch(name):
        return False
    is_wrapped = ".base_layer." in name
    return not is_wrapped or (config.bias != "none" and "bias" in name.rpartition(".")[2])


def _check_one_parameter(
    source: _Source, paths: Sequence[str], values: Mapping[str, torch.Tensor]
) -> None:
    """Check that the values of one parameter's paths are there and equal (BS656)."""
    first = next(values[path] for path in paths if path in values)
    if all(path in values and values[path].equal(first) for path in paths):
        return
    names = " and ".join(f"`{path}`" for path in paths)
    one = f"are one parameter in {source.architecture.name}"
    raise source.not_plain(f"{names} {one}, and its values of them differ")


def _trained(
    spec: m.Spec, saved: Mapping[str, torch.Tensor], architecture: Architecture
) -> tuple[m.Spec, Plan]:
    """Extend a spec to train these parameters in full, each by its path; return it with its plan."""
    train = NONE if architecture.head else None
    if saved:
        parts: list[m.Expression] = []
        for other in architecture.others:
            if other.path not in saved:
                continue
            # A tied parameter has its first path, and `train` must name all of its modules.
            path = _of_path(other.path)
            kinds = dict.fromkeys(path.rsplit(".", 2)[-2] for path in other.tied)
            parts += [path, *(m.And(all_of=(_is_kind(kind), path)) for kind in kinds)]
        train = m.Selection(include=tuple(parts))
    spec = spec.model_copy(update={"train": train})
    return spec, build_plan(spec, architecture)[0]


def _pairs(source: _Source) -> dict[Site, tuple[torch.Tensor, torch.Tensor, float]]:
    """Return A ``(rank, d_in)``, B ``(d_out, rank)`` and the scale of each module, in the model's order."""
    every_site = source.architecture.every_site
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for tensor_name, tensor in source.tensors.items():
        match = FACTOR.fullmatch(tensor_name)
        if match:
            factors.setdefault(match[1], {})[match[2] or match[3]] = tensor
    _join_tied(source, factors)
    stacked = _stacked(source)
    sites = {site.path: site for site in every_site}
    origins = expand_experts(factors, {*stacked, *sites}, source.model)
    _check_known(source, factors, stacked, sites)
    if factors:
        raise_errors(AdapterError, [*_unlike(source, factors)])
    names = {path: origins.get(path, path) for path in factors}
    for path in factors:
        if path in stacked:
            names[path] = stacked[path].path
    settings = source.config.settings(source.folder, {*names.values()})
    pairs: dict[Site, tuple[torch.Tensor, torch.Tensor, float]] = {}
    for module, pair in sorted(factors.items()):
        rank, scale = settings[names[module]]
        if module in sites:
            site = sites[module]
            _check_shapes(
                source, names[module], pair, rank, ((rank, site.d_in), (site.d_out, rank))
            )
            pairs[site] = pair["A"], pair["B"], scale
        else:
            _check_shapes(source, names[module], pair, rank, stacked[module].shapes(rank))
            for path, down, up in stacked[module].split(pair["A"], pair["B"], rank):
                pairs[sites[path]] = down, up, scale
    return {site: pairs[site] for site in every_site if site in pairs}


def _check_known(
    source: _Source,
    factors: Collection[str],
    stacked: Collection[str],
    sites: Collection[str],
) -> None:
    """Check that the base has each adapted module (BS613)."""
    unknown = [path for path in factors if path not in stacked and path not in sites]
    if not unknown:
        return
    # A prefix that another program adds is long, but the path ends as the model's.
    name = unknown[0][::-1]
    end = max(sites, key=lambda path: len(os.path.commonprefix([path[::-1], name])))  # noqa: RUF071
    near = nearest(unknown[0], sites) or f"it may be `{end}` there"
    raise source.other_base(
        f"it lacks {len(unknown)} of the {len(factors)} adapted modules, such as `{unknown[0]}`",
        near,
    )


def _check_shapes(
    source: _Source,
    name: str,
    pair: Mapping[str, torch.Tensor],
    rank: int,
    shapes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    """Check that a module's A and B have these shapes (BS613)."""
    a = tuple(pair["A"].shape) if "A" in pair else ()
    b = tuple(pair["B"].shape) if "B" in pair else ()
    if (a, b) == shapes:
        return
    (_, d_in), (d_out, _) = shapes
    raise source.other_base(
        f"`{name}` maps {d_in} features to {d_out} in it, and the LoRA of rank {rank} has factors "
        f"{a} and {b}"
    )


def _unlike(source: _Source, factors: Mapping[str, object]) -> Iterator[Problem]:
    """Find modules that PEFT adapts and that have no factors (BS609), and factors that it drops (BS656)."""
    config = source.config
    sites = source.architecture.every_site
    # PEFT renames targets in families whose experts are one parameter.
    if config.target_parameters or any(site.expert is not None for site in sites):
        return
    with reading(source.folder / CONFIG):
        chooser = config.chooser()
        if chooser is None:
            return
        chosen = [site.path for site in sites if check_target_module_exists(chooser, site.path)]
    if isinstance(chooser.target_modules, list):
        missing = [path for path in chosen if path not in factors]
        yield from (codes.MISSING_TENSOR(name=f"{path}.lora_A.weight") for path in missing)
    dropped = sorted(factors.keys() - chosen)
    if dropped:
        what = f"which {chooser.why} in its config leaves out"
        reason = f"PEFT drops the factors of `{dropped[0]}`, {what}"
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
        first = factors.get(site.path)
        others = [factors.pop(path, None) for path in site.tied]
        if not first and not any(others):
            continue
        if not all(first and other and _same_update(first, other) for other in others):
            paths = " and ".join(f"`{path}`" for path in site.paths)
            name = source.architecture.name
            one = f"are one weight in {name}"
            raise source.not_plain(f"{paths} {one}, and it does not add the same to all")


def _same_update(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Return whether two pairs have the same update of one weight; an embedding swaps A and B."""
    if not one.keys() == other.keys() == {"A", "B"}:
        return False
    if one["A"].equal(other["A"]) and one["B"].equal(other["B"]):
        return True
    return one["A"].equal(other["B"].t()) and one["B"].equal(other["A"].t())


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
    _, lora_plan, lora_tensors = read_peft(folder, architecture, model, layout)
    adapter = _Updates(plan, tensors)
    lora = _Updates(lora_plan, lora_tensors)
    maps: Mapping[str, Weight] = {}
    if model is not None and (plan.has_magnitudes or lora_plan.has_magnitudes):
        maps = linear_maps(model())
    norms: dict[str, tuple[float, float]] = {}
    for path, site in (lora.sites | adapter.sites).items():
        if path not in lora.sites:
            raise _differs(folder, f"the adapter alone adapts `{path}`")
        if path not in adapter.sites:
            # Layouts that have all experts have zeros for those that the adapter leaves alone.
            if lora_plan.magnitude(path) or product_norm(*lora.factors(site)):
                raise _differs(folder, f"the LoRA alone adapts `{path}`")
            norms[path] = 0.0, 0.0
            continue
        difference = _difference(adapter, lora, site, maps)
        norm = difference.norm
        apart = difference.apart
        # Also if it is not a number.
        if not apart <= (bound + _FLOAT32_TOLERANCE) * (norm or 1) + difference.rounding:
            relative = apart / norm if norm else apart
            what = f"dW of `{path}` differs by {relative:.2g} of its norm {norm:.3g}"
            raise _differs(folder, what)
        norms[path] = norm, apart
    for trained in plan.trained:
        if trained.tensor not in tensors:
            continue
        before = tensors[trained.tensor].detach().float().cpu().flatten()
        after = lora.trained.get(trained.parameter, torch.empty(0)).flatten()
        if not after.equal(before):
            raise _differs(folder, f"`{trained.parameter}`, which is trained in full, differs")
    return norms


@dataclass(frozen=True)
class _Updates:
    """The updates of an adapter, by its plan and its tensors."""

    plan: Plan
    tensors: Mapping[str, torch.Tensor]

    @cached_property
    def sites(self) -> dict[str, Site]:
        """The sites with an update, by path."""
        return {site.path: site for site in self.plan.sites if self.plan.terms_of[site.path]}

    @cached_property
    def trained(self) -> dict[str, torch.Tensor]:
        """The values of parameters trained in full, by path."""
        return {
            trained.parameter: self.tensors[trained.tensor]
            for trained in self.plan.trained
            if trained.tensor in self.tensors
        }

    def factors(self, site: Site) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the effective factors of a site on the CPU."""
        down, up = effective_factors(self.plan, self.tensors, site)
        return down.cpu(), up.cpu()


@dataclass(frozen=True)
class _Difference:
    """How far apart two updates of a module are, in Frobenius norms.

    Attributes:
        norm: of the first dW.
        apart: of the difference.
        rounding: by which they may differ because of W's rounding.
    """

    norm: float
    apart: float
    rounding: float = 0.0


def _difference(
    adapter: _Updates, lora: _Updates, site: Site, maps: Mapping[str, Weight]
) -> _Difference:
    """Compare the updates of a site; with a magnitude, the whole changes of its weight."""
    if adapter.plan.magnitude(site.path) or lora.plan.magnitude(site.path):
        dense = maps[site.path].values().cpu()
        before = delta(adapter.plan, adapter.tensors, site, dense).cpu()
        after = delta(lora.plan, lora.tensors, site, dense).cpu()
        rounding = _ROUNDING_OF_W * float(dense.float().norm())
        return _Difference(float(before.norm()), float((before - after).norm()), rounding)
    a, b = adapter.factors(site)
    c, d = lora.factors(site)
    apart = product_norm(torch.cat([a, c]), torch.cat([b, -d]))
    return _Difference(product_norm(a, b), apart)


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
        if chosen.issuperset(of_kind):
            parts.append(_is_kind(kind))
        elif chosen.issuperset(site for site in of_kind if site.block in layers):
            parts.append(_in_layers(kind, layers))
        else:
            parts += [_of_path(site.path) for site in of_kind if site in chosen]
    other_kinds = set(architecture.kinds)
    for site in architecture.outside:
        if site not in chosen:
            other_kinds.update(path.rpartition(".")[2] for path in site.paths)
    for site in sites:
        if site.layer is not None:
            continue
        for path in site.paths:
            kind = path.rpartition(".")[2]
            parts.append(_of_path(path) if kind in other_kinds else _is_kind(kind))
    return tuple(dict.fromkeys(parts))


def _in_layers(kind: str, layers: Iterable[int | None]) -> m.Expression:
    """Return the condition that selects a kind of site in some layers."""
    ranges = [
        m.Range(first=first, last=last) if first < last else first
        for first, last in runs_of(layers)
    ]
    among = m.Member(value=m.Ref(ref="layer"), among=tuple(ranges))
    return m.And(all_of=(_is_kind(kind), among))


def _of_path(path: str) -> m.Expression:
    return m.Match(attribute="path", pattern=path)


def _is_kind(kind: str) -> m.Expression:
    """Return the condition that selects a kind of site."""
    if kind.isidentifier() and kind not in m.ATTRIBUTES:
        return m.Ref(ref=kind)
    return m.Match(attribute="kind", pattern=kind)
