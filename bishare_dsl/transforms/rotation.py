"""Rotation: a factor made of rotated copies of one chunk (PRoLoRA).

Wang et al. 2024, "PRoLoRA: Partial Rotation Empowers More Parameter-Efficient LoRA", Section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeInt, PositiveInt

from bishare_dsl.transforms.transform import Transform, Width, one_width

if TYPE_CHECKING:
    from torch import Tensor


class Rotation(Transform):
    """``A = [A_0, roll(A_0, s), roll(A_0, 2 s), ...]``, cut to the width; B alike.

    The chunk is ``(r, ceil(width / chunks))``, and ``roll`` moves its rows down by ``stride`` for each
    copy, so that the copies differ. A second share without transform is the paper's unshared rank.
    """

    name: ClassVar[str] = "Rotation"
    title: ClassVar[str] = "Partial Rotation"

    chunks: PositiveInt = 4
    stride: NonNegativeInt = 1

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return rank, math.ceil(one_width(widths) / self.chunks)

    def factors(
        self, tensors: Mapping[str, Tensor], rank: int, width: Width
    ) -> tuple[Tensor, Tensor]:
        return (
            self._rotated(tensors["A"], width.d_in),
            self._rotated(tensors["B"], width.d_out),
        )

    def _rotated(self, chunk: Tensor, width: int) -> Tensor:
        import torch

        copies = [chunk.roll(i * self.stride, 0) for i in range(self.chunks)]
        return torch.cat(copies, 1)[:, :width]
