"""Loadings: the rows of factors as linear combinations of shared vectors (Share, EigenLoRAx).

Kaushik et al. 2025, "EigenLoRAx: Recycling Adapters to Find Principal Subspaces for Resource-Efficient
Adaptation and Inference", Algorithm 1. For both factors: "Share" (arXiv 2602.06043).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from bishare_dsl.transforms.transform import Own, Sort, Start, Tensors, Transform, Width

if TYPE_CHECKING:
    from torch import Tensor


class Loadings(Transform):
    """``A = L_A A_s`` and ``B = L_B B_s``: each row is a combination of ``vectors`` shared vectors.

    The pool shares ``A_s (vectors, max d_in)`` and ``B_s (vectors, max d_out)``; a narrower site uses the
    leading columns. The loadings ``L_A`` and ``L_B``, ``(r, vectors)`` each, are private to a site.
    """

    name: ClassVar[str] = "Loadings"
    title: ClassVar[str] = "Loadings on Shared Vectors"
    plain: ClassVar[tuple[str, ...]] = ("A", "B")
    sort: ClassVar[Sort] = Sort.FACTOR
    place: ClassVar[Mapping[str, str]] = {"L_A": "A", "L_B": "B"}
    mixes: ClassVar[bool] = True
    owned: ClassVar[tuple[str, ...]] = ("L_A", "L_B")

    vectors: PositiveInt = Field(32, description="shared vectors of each factor")

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return self.vectors, max(widths)

    def fan_in(self, role: str, rank: int, widths: Sequence[int]) -> int:
        return self.vectors if role == "B" else max(widths)

    def start(self, role: str) -> Start:
        return Start("zeros" if role == "L_B" else "kaiming_uniform")

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        return {role: Own(rank, self.vectors, fan_in=self.vectors) for role in self.owned}

    def reach(self, rank: int, width: Width) -> int:
        return min(rank, self.vectors, *width)

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        return self.mix(role, tensors, rank) @ tensors[role][:, :side]

    def mixed_rows(self, role: str, rank: int) -> int:
        return self.vectors

    def mix(self, role: str, tensors: Tensors, rank: int) -> Tensor:
        return tensors[f"L_{role}"]
