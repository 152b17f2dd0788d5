"""Gates: coefficients of counted matrices that depend on the token.

A transform that sums ``count`` matrices with coefficients of a site says so in `Transform.counted`. A gate
computes these coefficients for each token from a router ``G``, so the update is not a matrix:

    w = softmax(G s),    s = x or A x

With ``top k`` the softmax is over the k largest logits, as in Shazeer et al. 2017, "Outrageously Large
Neural Networks", Eq. 3 to 5 without noise. Equal logits are taken in their order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from bishare_dsl.transforms.transform import Transform

if TYPE_CHECKING:
    from torch import Tensor

Signal = Literal["x", "A x"]
"""The input of a router: that of the site, or what its place A gives."""

NOTHING_SUMMED = "it sums no matrices with coefficients that a gate could replace"
"""Why a transform takes no gate anywhere."""

ROUTER = "G"
"""The role of a router."""


class Gate(BaseModel):
    """``gate softmax``, or ``gate top 2 of A x``.

    Attributes:
        top: how many matrices a token uses; None for all.
        of: the input of the router.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # With one matrix its coefficient is constant, and the router would never learn.
    top: int | None = Field(None, ge=2, description="matrices that a token uses; None for all")
    of: Signal = "x"

    def written(self) -> str:
        """Write the gate as a spec does."""
        kind = "softmax" if self.top is None else f"top {self.top}"
        return f"gate {kind}" if self.of == "x" else f"gate {kind} of {self.of}"

    def coefficients(self, signal: Tensor, router: Tensor) -> Tensor:
        """Compute the coefficients ``(..., count)`` of each token.

        Args:
            signal: ``(..., columns)``.
            router: ``(count, columns)``.
        """
        import torch

        logits = signal @ router.t()
        if self.top is None:
            return logits.softmax(-1)
        ordered, places = logits.sort(dim=-1, descending=True, stable=True)
        largest = ordered[..., : self.top].softmax(-1)
        return torch.zeros_like(logits).scatter(-1, places[..., : self.top], largest)


def expand(coefficients: Tensor, z: Tensor) -> Tensor:
    """Return the blocks ``w_i z`` side by side: ``(..., count * r)``.

    Times matrices that are stacked in rows this is ``sum_i w_i z M_i``.

    Args:
        coefficients: ``(..., count)``.
        z: ``(..., r)``.
    """
    return (coefficients.unsqueeze(-1) * z.unsqueeze(-2)).flatten(-2)


def gather(coefficients: Tensor, blocks: Tensor, count: int) -> Tensor:
    """Return ``sum_i w_i z_i``: ``(..., r)``.

    Args:
        coefficients: ``(..., count)``.
        blocks: the ``z_i`` side by side, ``(..., count * r)``.
        count: of the blocks.
    """
    apart = blocks.unflatten(-1, (count, -1))
    total: Tensor = (coefficients.unsqueeze(-1) * apart).sum(-2)
    return total


def gate_refusal(place: str, transform: Transform, gate: Gate) -> str | None:
    """Explain why a gate cannot follow a transform at a place, as a clause; None if it can."""
    counted = transform.counted(place)
    if counted is None:
        where = "between A and B" if place == "between" else f"at {place}"
        return NOTHING_SUMMED.replace("matrices", f"matrices {where}")
    if place == "A" and gate.of == "A x":
        return "a gate at A reads x, because A x comes after it"
    if counted.count < 2:
        return "with one matrix the coefficient is always 1, so that the router never learns"
    if gate.top is not None and gate.top >= counted.count:
        return f"all of its {counted.count} matrices are `gate softmax`, and `top` takes fewer"
    return None
