"""Merge an adapter into its base's weights, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bishare_dsl.adapter.probe import Probe
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.effective import check_linear, delta
from bishare_dsl.models.hooks import is_offloaded, is_spread, resident
from bishare_dsl.models.inspect import ADAPTER
from bishare_dsl.models.site import Site
from bishare_dsl.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DENSE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class MergeReport:
    """How far a merged model is from the unmerged one.

    Attributes:
        modules: how many layers were merged.
        dequantized: how many of them were quantised and are now dense.
        max_difference: the largest difference of an output from the unmerged model's, on the probe; None
            where there is nothing to measure on.
        relative_difference: the norm of all these differences over that of the output, likewise.
        max_rounding: the largest difference between a merged weight and its sum in float32.
        measured: which of the model's outputs that is: ``logits``, where it has them.
        reason: why nothing was measured.
    """

    modules: int
    dequantized: int
    max_difference: float | None
    relative_difference: float | None
    max_rounding: float
    measured: str
    reason: str

    def __str__(self) -> str:
        dequantized = f" ({self.dequantized} dequantised)" if self.dequantized else ""
        rounding = (
            f"; weights rounded by at most {self.max_rounding:.3g}" if self.max_rounding else ""
        )
        if self.max_difference is None:
            moved = f"how far its outputs moved was not measured, for {self.reason}"
        else:
            moved = (
                f"{self.measured.replace('_', ' ')} differ from the unmerged model's by at most "
                f"{self.max_difference:.3g} (relative {self.relative_difference:.3g})"
            )
        return f"merged {self.modules} modules{dequantized}; {moved}{rounding}"


@dataclass
class Merged:
    """What a merged model was before: `swap` exchanges that with what it is.

    ``weights`` are exact copies on the CPU, by path, and ``layers`` the quantised layers that dense ones
    replace. Both are empty where the base was not to be kept.
    """

    kept: bool
    max_rounding: float = 0.0
    modules: int = 0
    dequantized: int = 0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    layers: dict[str, nn.Module] = field(default_factory=dict)

    def swap(self, model: PreTrainedModel) -> None:
        """Exchange, bit by bit, the merged weights and the base's."""
        for path, other in self.weights.items():
            weight = _weight(path, model.get_submodule(path))
            self.weights[path] = weight.detach().to("cpu", copy=True)
            with torch.no_grad():
                weight.copy_(other)
        for path, layer in self.layers.items():
            self.layers[path] = model.get_submodule(path)
            model.set_submodule(path, layer)


def merge(
    model: PreTrainedModel,
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    *,
    keep_base: bool,
) -> Merged:
    """Add each site's ``dW`` to its weight, in float32, and round the sum to the weight's type.

    Quantised layers are replaced by dense ones. `check` has passed, and the regions are disabled.

    Args:
        model: an adapted model.
        plan: its adapter's.
        tensors: the adapter's tensors by name, with values.
        keep_base: whether to keep copies of the weights, for the way back.
    """
    sites = _sites(plan)
    merged = Merged(keep_base, modules=len(sites))
    try:
        for site in sites:
            _merge_site(model, plan, tensors, site, merged)
    except BaseException:  # out of memory, interrupted: what was changed goes back
        merged.swap(model)
        raise
    return merged


def check(
    model: PreTrainedModel, plan: Plan, tensors: Mapping[str, torch.Tensor], *, dequantize: bool
) -> None:
    """Find everything that would stop `merge`; changes nothing.

    Raises:
        AdapterError: the adapter is no matrix (BS633), a weight is quantised and ``dequantize`` is
            false (BS622), cannot be dequantised
            (BS623), is not in memory (BS624) or belongs to others too (BS625), or a merged weight would
            not be finite (BS628).
    """
    check_linear(plan.terms, "merge the adapter")
    _check_weights(model, _sites(plan), dequantize)
    for site in _sites(plan):
        _summed(model, plan, tensors, site)


def report(merged: Merged, before: Probe, after: Probe) -> MergeReport:
    """Tell how a merge changed the model: what it gave `before` and `after`, for the same inputs."""
    max_difference = relative_difference = None
    if before.output is not None and after.output is not None:
        difference = (after.output - before.output).double()
        max_difference = difference.abs().max().item()
        relative_difference = (difference.norm() / before.output.double().norm()).item()
    return MergeReport(
        modules=merged.modules,
        dequantized=merged.dequantized,
        max_difference=max_difference,
        relative_difference=relative_difference,
        max_rounding=merged.max_rounding,
        measured=before.name,
        reason=before.reason,
    )


def _sites(plan: Plan) -> list[Site]:
    """Give the sites that the adapter adds something to."""
    return [site for site in plan.sites if plan.rows(site.path)]


def _merge_site(
    model: PreTrainedModel,
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    site: Site,
    merged: Merged,
) -> None:
    layer = model.get_submodule(site.path)
    exact, rounded = _summed(model, plan, tensors, site)
    merged.max_rounding = max(merged.max_rounding, (exact - rounded).abs().max().item())
    if _found(layer, site) is None:
        weight = _weight(site.path, layer)
        if merged.kept:
            merged.weights[site.path] = weight.detach().to("cpu", copy=True)
        with torch.no_grad():
            weight.copy_(rounded)
    else:
        merged.dequantized += 1
        if merged.kept:
            merged.layers[site.path] = layer
        model.set_submodule(site.path, _dense_layer(layer, rounded))


def _check_weights(model: PreTrainedModel, sites: list[Site], dequantize: bool) -> None:
    problems = []
    users = _users(model)
    for site in sites:
        layer = model.get_submodule(site.path)
        found = _found(layer, site)
        if isinstance(layer, (nn.Linear, Conv1D)) and "weight" not in layer._parameters:
            reason = "it is computed from other tensors, as by pruning or weight norm"
            problems.append(codes.NO_WEIGHT(path=site.path, reason=reason))
        elif found is not None and not dequantize:
            problems.append(codes.QUANTISED(path=site.path, found=found))
        elif found is None:
            weight = _weight(site.path, layer)
            if weight.is_meta:
                where = "offloaded to disk" if is_offloaded(layer) else "on the meta device"
                problems.append(codes.NO_WEIGHT(path=site.path, reason=f"it is {where}"))
            elif is_spread(weight):
                reason = "it is sharded over several processes"
                problems.append(codes.NO_WEIGHT(path=site.path, reason=reason))
            elif others := [path for path in users[_identity(weight)] if path != site.path]:
                problems.append(codes.SHARED_WEIGHT(path=site.path, other=others[0]))
    if problems:
        raise AdapterError(problems[:5])


def _users(model: PreTrainedModel) -> dict[int, list[str]]:
    """Find the paths of the modules that use each weight of the base."""
    users: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if ADAPTER not in path.split("."):
            for name in module._parameters:
                if (tensor := resident(module, name)) is not None:
                    users.setdefault(_identity(tensor), []).append(path)
    return users


def _identity(tensor: torch.Tensor) -> int:
    """Give a number that is equal for tensors with the same values in the same memory."""
    try:
        return tensor.data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # a subclass with no memory of its own
        return id(tensor)


def _found(layer: nn.Module, site: Site) -> str | None:
    """Tell what is in the place of a dense weight; None where there is one."""
    weight = layer._parameters.get("weight")
    shape = (site.d_in, site.d_out) if isinstance(layer, Conv1D) else (site.d_out, site.d_in)
    if weight is None:
        return type(layer).__name__
    if weight.dtype not in _DENSE or tuple(weight.shape) != shape:
        return f"{type(layer).__name__}, {str(weight.dtype).removeprefix('torch.')}"
    dense = type(weight.data) is torch.Tensor or is_spread(weight)
    return None if dense else type(weight.data).__name__


def _weight(path: str, layer: nn.Module) -> torch.Tensor:
    weight = resident(layer, "weight")
    assert weight is not None, path  # `_found` was asked before.
    return weight


def _summed(
    model: PreTrainedModel, plan: Plan, tensors: Mapping[str, torch.Tensor], site: Site
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the merged weight of a site, exact in float32 (or float64) and rounded to the weight's type."""
    layer = model.get_submodule(site.path)
    added = delta(plan, tensors, site)
    if _found(layer, site) is None:
        weight = _weight(site.path, layer).detach()
        added = added.t() if isinstance(layer, Conv1D) else added
    else:
        weight = _dequantized(layer, site).to(_compute_dtype(model))
    exact = weight.to(torch.promote_types(weight.dtype, torch.float32)) + added.to(weight.device)
    rounded = exact.to(weight.dtype)
    if not torch.isfinite(rounded).all():
        raise AdapterError(codes.NOT_FINITE(action="merging", path=site.path))
    return exact, rounded


def _dequantized(layer: nn.Module, site: Site) -> torch.Tensor:
    """Give the dense ``(d_out, d_in)`` weight of a quantised layer."""
    for dense in _ways(layer):
        if not isinstance(dense, torch.Tensor) or dense.dtype not in _DENSE:
            continue
        if tuple(dense.shape) == (site.d_out, site.d_in):
            return dense.detach()
    raise AdapterError(codes.NOT_DENSE(path=site.path, found=_found(layer, site)))


def _ways(layer: nn.Module) -> Iterator[object]:
    if callable(way := getattr(layer, "dequantize", None)):
        yield way()
    weight = layer._parameters.get("weight")
    # Every tensor has the method, and one of plain integers answers with these integers.
    if weight is not None and type(weight).dequantize is not torch.Tensor.dequantize:
        yield weight.dequantize()


def _dense_layer(layer: nn.Module, weight: torch.Tensor) -> nn.Linear:
    """Make a dense layer for the place of a quantised one."""
    bias = getattr(layer, "bias", None)
    dense = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    dense.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        dense.bias = nn.Parameter(bias.detach().to(weight.dtype), requires_grad=False)
    return dense.train(layer.training)


def _compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """Give the type of the activations, which a dense layer must share."""
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floating, torch.float32)
