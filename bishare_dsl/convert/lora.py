"""An adapter as a plain LoRA: one pair of factors per site, with as few rows as needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bishare_dsl.convert.effective import effective_factors
from bishare_dsl.convert.origin import NONE, Origin
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.site import Site
from bishare_dsl.plan import Plan
from bishare_dsl.plan.ranks import maximum_ranks

_ROUNDING = 1e-6
"""Relative norm of dW that float32 rounding may add beyond its rank."""


@dataclass(frozen=True)
class Pair:
    """The export of a site: ``dW = B^T A``, the scale folded into B.

    Attributes:
        down: A, ``(rank, d_in)``, on the CPU.
        up: B, ``(rank, d_out)``.
        rows: the number of rows of the effective factors.
    """

    site: Site
    down: torch.Tensor
    up: torch.Tensor
    rows: int

    @property
    def name(self) -> str:
        """The path of the site."""
        return self.site.path

    @property
    def rank(self) -> int:
        return len(self.down)


@dataclass(frozen=True)
class Lora:
    """An adapter as plain LoRA, for the writers of layouts.

    Attributes:
        plan: the adapter's plan.
        tensors: its tensors by name.
        model: the base, adapted or not.
        pairs: the pairs of its modules.
        origin: of the adapter.
    """

    plan: Plan
    tensors: Mapping[str, torch.Tensor]
    model: nn.Module
    pairs: Sequence[Pair]
    origin: Origin = NONE


def plain_lora(
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    *,
    rank: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Pair]:
    """Yield the pair of every site that the adapter changes.

    The effective factors are used unchanged, unless they have more rows than the update's maximum rank
    (`Transform.reach` and the site's widths). They are then replaced by the singular vectors of dW, from
    the QR of both factors and the SVD of a ``rows x rows`` matrix. With ``rank``, the result is the
    update's best approximation of that rank.

    Args:
        plan: the adapter's plan with linear terms. The caller applies magnitudes.
        tensors: its tensors by name, with values.
        rank: the maximum number of rows of a pair.
        dtype: the dtype of the values.

    Raises:
        AdapterError: values are not finite in this dtype (BS628).
        SpecError: a package's transform fails (BS214).
    """
    reaches = maximum_ranks(plan)
    for site in plan.sites:
        if not plan.terms_of[site.path]:
            continue
        down, up = effective_factors(plan, tensors, site, scaled=True)
        if not len(down):  # PEFT needs rank 1 for a magnitude.
            down = torch.zeros(1, site.d_in)
            up = torch.zeros(1, site.d_out)
        reach = reaches[site.path] or len(down)
        a, b = _shortened(down.cpu(), up.cpu(), reach, rank)
        a = a.to(dtype).contiguous()
        b = b.to(dtype).contiguous()
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            action = f"exporting in {str(dtype).removeprefix('torch.')}"
            raise AdapterError(codes.NOT_FINITE(action=action, path=site.path))
        yield Pair(site, a, b, len(down))


def _shortened(
    down: torch.Tensor, up: torch.Tensor, reach: int, rank: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if min(reach, rank or reach) >= len(down):
        return down, up
    in_basis, in_rest = torch.linalg.qr(down.double().t())
    out_basis, out_rest = torch.linalg.qr(up.double().t())
    left, values, right = torch.linalg.svd(out_rest @ in_rest.t(), full_matrices=False)
    if values[reach:].norm() > _ROUNDING * values.norm():
        reach = len(down)  # A transform with a wrong reach only costs rows.
    most = min(reach, rank or reach)
    if most >= len(down):
        return down, up
    # A has orthonormal rows, so training can continue even if dW is zero.
    a = right[:most] @ in_basis.t()
    b = (out_basis @ (left[:, :most] * values[:most])).t()
    return a.float(), b.float()


def product_norm(down: torch.Tensor, up: torch.Tensor) -> float:
    """Return the Frobenius norm of ``B^T A`` without computing the product."""
    out_rest = torch.linalg.qr(up.double().t(), mode="r").R
    in_rest = torch.linalg.qr(down.double().t(), mode="r").R
    return float((out_rest @ in_rest.t()).norm())
