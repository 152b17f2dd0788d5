"""An adapter as one plain LoRA: a pair of factors for each site, with no more rows than it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.effective import effective_factors
from bishare_dsl.models.site import Site
from bishare_dsl.plan import Plan
from bishare_dsl.plan.ranks import effective_ranks

_ROUNDING = 1e-6
"""What float32 may add to the rank of an update, of its norm."""


@dataclass(frozen=True)
class Pair:
    """What is exported for a site: ``dW = B^T A``, the scale folded into B.

    Attributes:
        down: A, ``(rank, d_in)``, on the CPU.
        up: B, ``(rank, d_out)``.
        rows: how many rows the effective factors have.
        norm: the Frobenius norm of dW. Measured where a rank or a type was asked for, else 0.
        lost: that of the difference between the pair's product and dW; likewise.
    """

    site: Site
    down: torch.Tensor
    up: torch.Tensor
    rows: int
    norm: float
    lost: float

    @property
    def name(self) -> str:
        """The path of the site."""
        return self.site.path

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def error(self) -> float:
        """What is lost, of the norm."""
        return self.lost / self.norm if self.norm else 0.0


def plain_lora(
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    *,
    rank: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Pair]:
    """Yield the pair of every site that the adapter adds something to.

    The effective factors are taken as they are, unless they have more rows than the update can have ranks
    (`Transform.reach`, and the site's widths): then the singular vectors of dW, which are as many. They are
    found by QR of both factors and the SVD of a matrix of ``rows x rows``. With ``rank``, the update's best
    approximation of that rank.

    Args:
        plan: the adapter's plan, of linear terms. Magnitudes are the caller's to apply.
        tensors: its tensors by name, with values.
        rank: how many rows a pair has at most.
        dtype: what values are rounded to.

    Raises:
        AdapterError: values are not finite in this type (BS628).
        SpecError: a package's transform fails (BS214).
    """
    reaches = effective_ranks(plan)
    for site in (site for site in plan.sites if plan.terms_of[site.path]):
        down, up = (factor.cpu() for factor in effective_factors(plan, tensors, site, scaled=True))
        if not len(down):  # PEFT has no rank 0 beside a magnitude.
            down, up = torch.zeros(1, site.d_in), torch.zeros(1, site.d_out)
        kept = _shortened(down, up, reaches[site.path] or len(down), rank)
        a, b = (factor.to(dtype).contiguous() for factor in kept)
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            action = f"exporting in {str(dtype).removeprefix('torch.')}"
            raise AdapterError(codes.NOT_FINITE(action=action, path=site.path))
        norm = lost = 0.0
        if rank is not None or dtype != torch.float32:
            norm = product_norm(down, up)
            lost = product_norm(torch.cat([down, a]), torch.cat([up, -b]))
        yield Pair(site, a, b, len(down), norm, lost)


def total_error(pairs: Sequence[Pair]) -> float:
    """Return what all pairs together lose, of the norm of all updates."""
    lost = math.hypot(*(pair.lost for pair in pairs))
    norm = math.hypot(*(pair.norm for pair in pairs))
    return lost / norm if norm else 0.0


def _shortened(
    down: torch.Tensor, up: torch.Tensor, reach: int, rank: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if min(reach, rank or reach) >= len(down):
        return down, up
    in_basis, in_rest = torch.linalg.qr(down.double().t())
    out_basis, out_rest = torch.linalg.qr(up.double().t())
    left, values, right = torch.linalg.svd(out_rest @ in_rest.t(), full_matrices=False)
    if values[reach:].norm() > _ROUNDING * values.norm():
        reach = len(down)  # A transform that is wrong about its reach costs rows, and nothing else.
    kept = min(reach, rank or reach)
    if kept >= len(down):
        return down, up
    # A has orthonormal rows, so that it trains on even where dW is zero.
    a = right[:kept] @ in_basis.t()
    b = (out_basis @ (left[:, :kept] * values[:kept])).t()
    return a.float(), b.float()


def product_norm(down: torch.Tensor, up: torch.Tensor) -> float:
    """Return the Frobenius norm of ``B^T A``, which is not made."""
    rests = (torch.linalg.qr(factor.double().t(), mode="r").R for factor in (up, down))
    out_rest, in_rest = rests
    return float((out_rest @ in_rest.t()).norm())
