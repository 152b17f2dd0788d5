"""Rotation: a factor built from rotated copies of one chunk (PRoLoRA).

Wang et al. 2024, "PRoLoRA: Partial Rotation Empowers More Parameter-Efficient LoRA", Section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from bishare_dsl.transforms.transform import Sort, Tensors, Transform, Width, one_width

if TYPE_CHECKING:
    from torch import Tensor


class Rotation(Transform):
    """``A = [A_0, roll(A_0, s), roll(A_0, 2 s), ...]``, cropped to the width; B likewise.

    The chunk ``A_0`` is ``(r, ceil(d_in / chunks_A))``, ``B_0`` is ``(r, ceil(d_out / chunks_B))``.
    ``roll`` moves rows down by ``stride`` for each copy, so that the copies differ. By default they
    complete one rotation: ``s = r / chunks``, rounded down, and at least 1. Write the paper's unshared
    rank as a separate share.
    """

    name: ClassVar[str] = "Rotation"
    title: ClassVar[str] = "Partial Rotation"
    sort: ClassVar[Sort] = Sort.FACTOR

    chunks_A: PositiveInt = Field(4, description="copies of a chunk that make A")
    chunks_B: PositiveInt = Field(4, description="copies of a chunk that make B")
    stride: NonNegativeInt | None = Field(
        None,
        description="rows by which each copy is rolled further than the last; by default the rank over "
        "the chunks, rounded down, and 1 at least",
    )

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        width = one_width(widths)
        chunks = self._chunks(role)
        if chunks > width:
            raise ValueError(f"{chunks:,} chunks are more than its {width:,} columns")
        return rank, math.ceil(width / chunks)

    def fan_in(self, role: str, rank: int, widths: Sequence[int]) -> int:
        # The paper's corrected initialisation: a chunk is initialised like the whole factor.
        return rank if role == "B" else one_width(widths)

    def reach(self, rank: int, width: Width) -> int:
        sides = []
        for role, side in zip("AB", width, strict=True):
            turn = rank // math.gcd(rank, self._stride(role, rank))  # Copies before they repeat.
            chunk = math.ceil(side / self._chunks(role))
            sides.append(min(side, chunk * min(turn, self._chunks(role))))
        return min(rank, *sides)

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        import torch

        stride = self._stride(role, rank)
        copies = [tensors[role].roll(i * stride, 0) for i in range(self._chunks(role))]
        return torch.cat(copies, 1)[:, :side]

    def _chunks(self, role: str) -> int:
        return self.chunks_A if role == "A" else self.chunks_B

    def _stride(self, role: str, rank: int) -> int:
        return max(rank // self._chunks(role), 1) if self.stride is None else self.stride
