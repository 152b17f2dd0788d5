"""Basis: factors as linear combinations of basis matrices, usually random and frozen (NOLA).

Koohpayegani et al. 2024, "NOLA: Compressing LoRA using Linear Combination of Random Basis", Eq. 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from bishare_dsl.transforms.transform import (
    Counted,
    Own,
    Sort,
    Start,
    Tensors,
    Transform,
    Width,
    combine_blocks,
    weighted_sum,
)

if TYPE_CHECKING:
    from torch import Tensor


class Basis(Transform):
    """``A = sum_i c_A[i] A_i`` and ``B = sum_i c_B[i] B_i`` over ``count`` basis matrices of each.

    The pool shares the basis matrices, stacked in ``A (count * r, max d_in)`` and ``B (count * r, max
    d_out)``; a narrower site uses the leading columns. The coefficients, ``(1, count)`` each, are private
    to a site. With ``freeze A, B`` the matrices are regenerated from the seed and never stored.
    """

    name: ClassVar[str] = "Basis"
    title: ClassVar[str] = "Linear Combination of a Basis"
    sort: ClassVar[Sort] = Sort.FACTOR
    place: ClassVar[Mapping[str, str]] = {"c_A": "A", "c_B": "B"}
    mixes: ClassVar[bool] = True
    owned: ClassVar[tuple[str, ...]] = ("c_A", "c_B")

    count: PositiveInt = Field(64, description="basis matrices of each factor")

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return self.count * rank, max(widths)

    def start(self, role: str) -> Start:
        return Start("zeros" if role == "c_B" else "kaiming_uniform")

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        return {role: Own(1, self.count, fan_in=self.count) for role in self.owned}

    def counted(self, place: str) -> Counted | None:
        return Counted(self.count, f"c_{place}") if f"c_{place}" in self.owned else None

    def stacked(self, place: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        return tensors[place][..., :side]

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        matrices = self.stacked(role, tensors, rank, side)
        return weighted_sum(tensors[f"c_{role}"], matrices, self.count)

    def mixed_rows(self, role: str, rank: int) -> int:
        return self.count * rank

    def mix(self, role: str, tensors: Tensors, rank: int) -> Tensor:
        return combine_blocks(tensors[f"c_{role}"], rank)
