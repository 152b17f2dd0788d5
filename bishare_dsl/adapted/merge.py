"""Merge an adapter into its base's weights, and undo it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from bishare_dsl.convert.effective import check_linear, delta
from bishare_dsl.diagnostics import AdapterError, Problem, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.initial.values import parameter_at
from bishare_dsl.models.hooks import (
    forget_loading,
    is_offloaded,
    is_sharded_tensor,
    resident_tensor,
)
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.site import Site, in_adapter
from bishare_dsl.models.weights import Weight
from bishare_dsl.plan.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class MergeReport:
    """The result of a merge, with its rounding errors.

    Attributes:
        modules: how many layers were merged.
        dequantized: how many of them were quantised before and are now dense.
        max_rounding: the largest difference between a merged weight and its exact sum in float32.
        survival: the fraction of the update that the weights keep.
    """

    modules: int
    dequantized: int = 0
    max_rounding: float = 0.0
    survival: Survival = field(default_factory=lambda: Survival())

    def __str__(self) -> str:
        dequantized = f" ({self.dequantized} dequantised)" if self.dequantized else ""
        rounding = f"weights rounded by at most {self.max_rounding:.3g}"
        survived = f"\nkept of the update: {self.survival}" if self.survival.kept else ""
        return f"merged {self.modules} modules{dequantized}; {rounding}{survived}"


@dataclass
class Survival:
    """The fraction of an update that survives rounding: ``<W' - W, dW> / |dW|^2``, 1 without loss.

    Attributes:
        form: the type to which weights are rounded.
        projections: the sums of ``<W' - W, dW>``, by kind of module.
        energies: the sums of ``|dW|^2``, by kind of module.
    """

    form: str = ""
    projections: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    energies: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, kind: str, change: torch.Tensor, update: torch.Tensor) -> None:
        """Record a module whose weights changed by ``change`` when ``update`` was added."""
        self.projections[kind] += (change * update).sum(dtype=torch.float64).item()
        self.energies[kind] += update.square().sum(dtype=torch.float64).item()

    @property
    def kept(self) -> dict[str, float]:
        """The fraction by kind, without kinds that have no update."""
        return {kind: self.projections[kind] / e for kind, e in self.energies.items() if e}

    def problems(self) -> list[Problem]:
        """Warn if a kind keeps less than `ENOUGH` of its update (BS639)."""
        kind, share = min(self.kept.items(), key=lambda pair: pair[1], default=("", math.inf))
        if share >= ENOUGH:
            return []
        return [codes.UPDATE_LOST(kind=kind, kept=_percent(share), form=self.form)]

    def __str__(self) -> str:
        whole = sum(self.projections.values()) / sum(self.energies.values())
        kinds = ", ".join(f"{kind} {_percent(share)}" for kind, share in self.kept.items())
        return f"{_percent(whole)} in {self.form} ({kinds})"


ENOUGH = 0.9
"""The fraction of an update below which merging warns."""


def _percent(share: float) -> str:
    # Round down, so that 100% means no loss.
    return f"{math.floor(share * 1000 + 1e-3) / 10:.4g}%"


@dataclass
class Merged:
    """The original state of a merged model; `swap` exchanges it with the merged state.

    ``weights`` are exact copies on the CPU, by the path of a site or of a parameter trained in full.
    ``layers`` are the quantised layers that dense layers replace. Both are empty if the base is not kept.
    ``inside`` tells whether the merged weights are in the model, or a part of them while `merge` runs.
    """

    kept: bool
    report: MergeReport
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    layers: dict[str, nn.Module] = field(default_factory=dict)
    inside: bool = False

    def write(
        self, path: str, weight: torch.Tensor, exact: torch.Tensor, rounded: torch.Tensor
    ) -> None:
        """Write a rounded merged value, and store the original if the base is kept."""
        self.note(exact, rounded)
        if self.kept:
            self.weights[path] = weight.detach().to("cpu", copy=True)
        with torch.no_grad():
            weight.copy_(rounded)

    def note(self, exact: torch.Tensor, rounded: torch.Tensor) -> None:
        """Record the rounding error of a value."""
        lost = (exact - rounded).abs().max().item()
        self.report.max_rounding = max(self.report.max_rounding, lost)

    def swap(self, model: PreTrainedModel) -> None:
        """Exchange the merged weights and the base's, bit for bit. If it is interrupted, no value changed."""
        maps = linear_maps(model) if self.weights else {}
        places = {path: maps[path].matrix() for path in self.weights if path in maps}
        places |= {p: parameter_at(model, p) for p in self.weights if p not in maps}
        before: dict[str, torch.Tensor] = {}
        layers = {path: model.get_submodule(path) for path in self.layers}
        try:
            with torch.no_grad():
                for path, weight in places.items():
                    before[path] = weight.detach().to("cpu", copy=True)
                    weight.copy_(self.weights[path])
                    self.weights[path] = before[path]
            for path, layer in self.layers.items():
                model.set_submodule(path, layer)
            self.layers = layers
            self.inside = not self.inside
        except BaseException:
            with torch.no_grad():
                for path, value in before.items():
                    if self.weights[path] is value:
                        self.weights[path] = places[path].detach().to("cpu", copy=True)
                    places[path].copy_(value)
            raise


def merge(
    model: PreTrainedModel, plan: Plan, tensors: Mapping[str, torch.Tensor], merged: Merged
) -> None:
    """Add each site's ``dW`` to its weight, in float32, and round the sum to the weight's type.

    Replace quantised layers by dense layers. Call `check` and disable the regions first.

    Args:
        model: an adapted model.
        plan: its adapter's.
        tensors: the adapter's tensors by name, with values.
        merged: receives the report and, if it keeps the base, copies of the weights, each before it changes.
            After an interruption its `swap` undoes what was done.
    """
    targets = _targets(model, plan)
    merged.report = MergeReport(len(targets))
    merged.inside = True
    for site, weight in targets:
        _merge_site(model, plan, tensors, site, weight, merged)
    for trained in plan.trained:
        parameter = parameter_at(model, trained.parameter)
        exact = tensors[trained.tensor].view(parameter.shape).to(parameter.device)
        merged.write(trained.parameter, parameter, exact, exact.to(parameter.dtype))


def check(
    model: PreTrainedModel, plan: Plan, tensors: Mapping[str, torch.Tensor], *, dequantize: bool
) -> None:
    """Check for everything that would make `merge` fail; changes nothing.

    Raises:
        AdapterError: an update is not a matrix (BS633); a weight is quantised and ``dequantize`` is false
            (BS622), cannot be dequantised (BS623), is not in memory (BS624) or is used by other modules
            too (BS625); or a merged weight would not be finite (BS628).
    """
    check_linear(plan.update_terms, "merge the adapter")
    targets = _targets(model, plan)
    _check_weights(model, targets, dequantize)
    for trained in plan.trained:
        parameter = parameter_at(model, trained.parameter)
        if parameter.is_meta or is_sharded_tensor(parameter):
            where = "on the meta device" if parameter.is_meta else "sharded over several processes"
            raise AdapterError(codes.NO_WEIGHT(path=trained.parameter, reason=f"it is {where}"))
        if not torch.isfinite(tensors[trained.tensor].to(parameter.dtype)).all():
            raise AdapterError(codes.NOT_FINITE(action="merging", path=trained.parameter))
    for site, weight in targets:
        base = base_weight(model, weight)
        _summed(weight, base, delta(plan, tensors, site, base))


def make_dense(model: PreTrainedModel) -> None:
    """Dequantise the layers that a merge left quantised, so that the model saves and loads as a dense one.

    A checkpoint's config specifies quantisation for all its layers at once.

    Raises:
        AdapterError: a layer cannot be dequantised (BS623).
    """
    for path, weight in linear_maps(model).items():
        if (kind := weight.replacement()) is None or weight.is_computed():
            continue
        if weight.owner != path or weight.looks_up:  # Cannot be replaced by a linear layer.
            raise AdapterError(codes.NOT_DENSE(path=path, found=kind))
        value = weight.dense().to(_compute_dtype(model))
        model.set_submodule(path, _dense_layer(weight.module, value))
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:
        quantizer.remove_quantization_config(model)
        forget_loading(model)


def _targets(model: PreTrainedModel, plan: Plan) -> list[tuple[Site, Weight]]:
    """Return the sites with terms, each with its weight."""
    maps = linear_maps(model)
    sites = [site for site in plan.sites if plan.terms_of[site.path]]
    reason = "the module was removed, or replaced by another one of the model"
    gone = [site.path for site in sites if site.path not in maps]
    raise_errors(AdapterError, [codes.NO_WEIGHT(path=path, reason=reason) for path in gone[:5]])
    return [(site, maps[site.path]) for site in sites]


def _merge_site(
    model: PreTrainedModel,
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    site: Site,
    weight: Weight,
    merged: Merged,
) -> None:
    base = base_weight(model, weight)
    added = delta(plan, tensors, site, base)
    exact, rounded = _summed(weight, base, added)
    survival = merged.report.survival
    added = added.to(exact.device)
    survival.form = str(rounded.dtype).removeprefix("torch.")
    # Subtract the small loss, so that the fraction is exact if nothing is lost.
    survival.add(weight.path.rpartition(".")[2], added - (exact - rounded), added)
    if weight.replacement() is None:
        merged.write(weight.path, weight.matrix(), exact, rounded)
    else:
        merged.note(exact, rounded)
        merged.report.dequantized += 1
        if merged.kept:
            merged.layers[weight.path] = weight.module
        model.set_submodule(weight.path, _dense_layer(weight.module, rounded))


def _check_weights(
    model: PreTrainedModel, targets: list[tuple[Site, Weight]], dequantize: bool
) -> None:
    """Check that the adapter can be added to each weight.

    Raises:
        AdapterError: a weight has no values in this process (BS624), another module uses it (BS625), or it
            is quantised and may not be dequantised (BS622).
    """
    problems: list[Problem] = []
    quantised: dict[str, str] = {}
    users = _users(model)
    for site, weight in targets:
        reason = _lack(weight)
        if reason is not None:
            problems.append(codes.NO_WEIGHT(path=weight.path, reason=reason))
            continue
        quantisation = weight.replacement()
        if quantisation is not None:
            quantised[weight.path] = quantisation
            continue
        stored = weight.stored()
        assert stored is not None
        for path in users[_identity(stored)]:
            is_own = path == weight.owner or path in site.tied
            if not is_own and not _is_one(model, path, weight, site):
                problems.append(_shared(weight, path))
                break
    if quantised and not dequantize:
        path, kind = next(iter(quantised.items()))
        count = len(quantised) - 1
        what = f"`{path}` and {count} others are" if count else f"`{path}` is"
        problems.append(codes.QUANTISED(what=what, found=kind))
    raise_errors(AdapterError, problems[:5])


def _lack(weight: Weight) -> str | None:
    """Return why nothing can be added to a weight in this process, if so."""
    if weight.is_computed():
        return "it is computed from other tensors, as by pruning or weight norm"
    if weight.replacement() is not None:
        parameters = weight.module.parameters(recurse=False)
        is_offloaded_too = any(parameter.is_meta for parameter in parameters)
        return "it is quantised and offloaded" if is_offloaded_too else None
    stored = weight.stored()
    assert stored is not None
    if stored.is_meta:
        place = "offloaded to disk" if is_offloaded(weight.module) else "on the meta device"
        return f"it is {place}"
    if is_sharded_tensor(stored):
        return "it is sharded over several processes"
    return None


def _is_one(model: PreTrainedModel, path: str, weight: Weight, site: Site) -> bool:
    """Tell whether the adapter runs where a path leads to.

    The path leads to the weight's module through the same parent, or to an embedding that is tied to it,
    which is adapted for all of its parents: in T5 after `resize_token_embeddings`, of both towers.
    """
    module = model.get_submodule(path)
    parents = [model.get_submodule(p.rpartition(".")[0]) for p in (path, weight.owner)]
    if module is weight.module and parents[0] is parents[1]:
        return True
    tables = [model.get_submodule(tied) for tied in site.tied if isinstance(module, nn.Embedding)]
    return any(module is table for table in tables)


def _shared(weight: Weight, other: str) -> Problem:
    """Describe how to untie a weight from another module's."""
    copied = f"copy.deepcopy(model.get_submodule('{other}'))"
    help = f"give the other module its own copy first: `model.set_submodule('{other}', {copied})`"
    return codes.SHARED_WEIGHT(path=weight.path, other=other, help=help)


def _users(model: PreTrainedModel) -> dict[int, list[str]]:
    """Find the paths of the modules that use each weight of the base."""
    users: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if not in_adapter(path):
            for name in module._parameters:
                tensor = resident_tensor(module, name)
                if tensor is not None:
                    users.setdefault(_identity(tensor), []).append(path)
    return users


def _identity(tensor: torch.Tensor) -> int:
    """Return a key that is equal for tensors with the same values in the same memory."""
    try:
        return tensor.data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # A tensor subclass without memory.
        return id(tensor)


def base_weight(model: PreTrainedModel, weight: Weight) -> torch.Tensor:
    """Return a dense weight ``(d_out, d_in)``."""
    quantised = weight.replacement() is not None
    return weight.dense().to(_compute_dtype(model)) if quantised else weight.matrix()


def _summed(
    weight: Weight, base: torch.Tensor, added: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute a merged weight: exact, in float32 (or float64), and rounded to the weight's type."""
    exact = base.to(torch.promote_types(base.dtype, torch.float32)) + added.to(base.device)
    rounded = exact.to(base.dtype)
    if not torch.isfinite(rounded).all():
        raise AdapterError(codes.NOT_FINITE(action="merging", path=weight.path))
    return exact, rounded


def _dense_layer(layer: nn.Module, weight: torch.Tensor) -> nn.Linear:
    """Create a dense layer to replace a quantised one."""
    bias = getattr(layer, "bias", None)
    dense = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    dense.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        dense.bias = nn.Parameter(bias.detach().to(weight.dtype), requires_grad=False)
    return dense.train(layer.training)


def _compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return the dtype of the activations, which a dense layer must use."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
