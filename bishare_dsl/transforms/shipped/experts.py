"""Experts: one A, several B, and a router that weights them by the input (HydraLoRA).

Tian et al. 2024, "HydraLoRA: An Asymmetric LoRA Architecture for Efficient Fine-Tuning", Eq. 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bishare_dsl.transforms.gate import Gate, expand
from bishare_dsl.transforms.transform import Own, Start, Tensors, Transform, Width, one_width

if TYPE_CHECKING:
    from torch import Tensor


class Experts(Transform):
    """``y = sum_i softmax(G x)_i B_i A x``, over ``count`` experts: ``B Mix(count_B = count) gate softmax``.

    The pools share ``A (r, d_in)`` and the experts, stacked in ``B (count * r, d_out)``. The router ``G
    (count, d_in)`` is private to a site. Its output depends on x, so the update is not a matrix.
    """

    name: ClassVar[str] = "Experts"
    title: ClassVar[str] = "Experts with a Router"
    owned: ClassVar[tuple[str, ...]] = ("G",)
    linear: ClassVar[bool] = False

    # With one expert the softmax is constant, and the router would never learn.
    count: int = Field(3, ge=2, description="experts, each with a private B")

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return (rank if role == "A" else self.count * rank), one_width(widths)

    def start(self, role: str) -> Start:
        return Start("kaiming_uniform") if role == "G" else super().start(role)

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        return {"G": Own(self.count, width.d_in, fan_in=width.d_in)}

    def zeros(self, zero: frozenset[str]) -> frozenset[str]:
        return zero - {"G"}

    def update(self, x: Tensor, tensors: Tensors, rank: int, width: Width) -> Tensor:
        weights = Gate().coefficients(x, tensors["G"])
        down = x @ tensors["A"].t()  # (..., r)
        return expand(weights, down) @ tensors["B"]
