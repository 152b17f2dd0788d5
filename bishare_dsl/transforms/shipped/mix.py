"""Mix: factors as mixtures of shared matrices, with separate weights for each site (Lily, MASA).

Zhong et al. 2025, "Low-Rank Interconnected Adaptation across Layers". The router is replaced by a vector
for each site, so that the update is a matrix. For several A: MASA (arXiv 2510.06005).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt, model_validator

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


class Mix(Transform):
    """``A = sum_i m_A[i] A_i`` over ``count_A`` matrices, and ``B = sum_i m_B[i] B_i`` over ``count_B``.

    The pools share the matrices, stacked in ``A (count_A * r, max d_in)`` and ``B (count_B * r, max
    d_out)``; a narrower site uses the leading columns. The weights, ``m_A (1, count_A)`` and ``m_B (1,
    count_B)``, are private to a site. A factor with one matrix has no weights.
    """

    name: ClassVar[str] = "Mix"
    title: ClassVar[str] = "Static Mixture"
    sort: ClassVar[Sort] = Sort.FACTOR
    place: ClassVar[Mapping[str, str]] = {"m_A": "A", "m_B": "B"}
    mixes: ClassVar[bool] = True
    owned: ClassVar[tuple[str, ...]] = ("m_A", "m_B")

    count_A: PositiveInt = Field(1, description="matrices that are mixed into A")
    count_B: PositiveInt = Field(1, description="matrices that are mixed into B")

    @model_validator(mode="after")
    def _mixes(self) -> Mix:
        if not self.mixed:
            raise ValueError("`count_A` or `count_B` is 2 or more, or nothing is mixed")
        return self

    @property
    def mixed(self) -> str:
        """The factors that are mixtures: A, B, or both."""
        factors = ""
        if self.count_A > 1:
            factors += "A"
        if self.count_B > 1:
            factors += "B"
        return factors

    @property
    def roles(self) -> tuple[str, ...]:
        return (*self.pooled, *(f"m_{role}" for role in self.mixed))

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return self._count(role) * rank, max(widths)

    def start(self, role: str) -> Start:
        if role not in self.owned:
            return super().start(role)
        # Their sum is about 1, as for a balanced router; equal weights would give all matrices one
        # gradient.
        return Start("positive", 2 / self._count(role[-1]))

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        counts = {role: self._count(role) for role in self.mixed}
        return {f"m_{role}": Own(1, count) for role, count in counts.items()}

    def counted(self, place: str) -> Counted | None:
        return Counted(self._count(place), f"m_{place}") if place in self.mixed else None

    def stacked(self, place: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        return tensors[place][..., :side]

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        matrices = self.stacked(role, tensors, rank, side)
        if role in self.mixed:
            return weighted_sum(tensors[f"m_{role}"], matrices, self._count(role))
        return matrices

    def mixed_rows(self, role: str, rank: int) -> int:
        return self._count(role) * rank

    def mix(self, role: str, tensors: Tensors, rank: int) -> Tensor:
        if role not in self.mixed:
            identity: Tensor = tensors[next(iter(tensors))].new_ones(rank).diag()
            return identity
        return combine_blocks(tensors[f"m_{role}"], rank)

    def _count(self, role: str) -> int:
        return self.count_A if role == "A" else self.count_B
