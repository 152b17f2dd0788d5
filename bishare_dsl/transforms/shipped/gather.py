"""Gather: each entry of a factor is an entry of one vector (Uni-LoRA).

Li et al. 2025, "Uni-LoRA: One Vector is All You Need" (arXiv 2506.00799), Eq. 1 and Section 3.2:
``theta_D = P theta_d``, where each row of the projection P has one entry that is not zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from bishare_dsl.transforms.transform import Own, Sort, Start, Tensors, Transform, Width

if TYPE_CHECKING:
    from torch import Tensor


class Gather(Transform):
    """``A[k, j] = theta[I_A[k, j]] / sqrt(n)``, and B likewise, with random indices of each site.

    The pool shares ``theta (1, length)``. The indices ``I_A (r * d_in, 3)`` and ``I_B (r * d_out, 3)`` come
    from the seed and are never trained. An entry of the vector is used about ``n`` times in a factor, and at
    most ``n`` rounded up, where ``n`` is ``r * width / length``, at least 1. So the projection of a factor
    has columns of about length 1. The paper counts the uses in the whole model instead.
    """

    name: ClassVar[str] = "Gather"
    title: ClassVar[str] = "Entries of One Vector"
    pooled: ClassVar[tuple[str, ...]] = ("theta",)
    owned: ClassVar[tuple[str, ...]] = ("I_A", "I_B")
    fixed: ClassVar[tuple[str, ...]] = ("I_A", "I_B")
    exact: ClassVar[tuple[str, ...]] = ("I_A", "I_B")
    sort: ClassVar[Sort] = Sort.FACTOR
    place: ClassVar[Mapping[str, str]] = {"I_A": "A", "I_B": "B"}

    length: PositiveInt = Field(23_040, description="entries of the vector")
    bound: PositiveFloat = Field(
        0.02, description="the vector starts uniform between minus this and this"
    )

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return 1, self.length

    def start(self, role: str) -> Start:
        return Start("choice") if role in self.fixed else Start("uniform", self.bound)

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        indices = {}
        for role, side in zip(self.fixed, width, strict=True):
            entries = rank * side
            # Distinct numbers, so that modulo the length no entry is used much more often than another.
            numbers = self.length * math.ceil(entries / self.length)
            if numbers > 256**3:
                raise ValueError(f"{entries:,} entries of a factor are more than 16,777,216")
            indices[role] = Own(entries, 3, fan_in=numbers)
        return indices

    def zeros(self, zero: frozenset[str]) -> frozenset[str]:
        return frozenset("AB" if "theta" in zero else "")  # Both factors depend on it.

    def reach(self, rank: int, width: Width) -> int:
        return min(rank, *width) if self.length > 1 else 1

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        digits = tensors[f"I_{role}"].long()
        chosen = (digits[:, 0] * 65_536 + digits[:, 1] * 256 + digits[:, 2]) % self.length
        uses = max(rank * side / self.length, 1)
        return tensors["theta"][0][chosen].reshape(rank, side) / math.sqrt(uses)
