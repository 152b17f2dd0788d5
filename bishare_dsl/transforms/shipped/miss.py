"""MiSS: the columns of an update repeat the rows of one matrix (MiSS, Bone).

Kang and Yin 2024, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure"
(arXiv 2409.15371); PEFT's default variant.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from bishare_dsl.transforms.transform import Sort, Tensors, Transform

if TYPE_CHECKING:
    from torch import Tensor


class MiSS(Transform):
    """``dW = B^T [I, I, ...]``: inputs with equal indices modulo ``r`` are summed, then multiplied by B.

    The pool shares only ``B (r, max d_out)``; a narrower site uses the leading columns. A is the identity
    ``(r, r)``, repeated and cropped to ``d_in``, so it is neither trained nor stored.
    """

    name: ClassVar[str] = "MiSS"
    title: ClassVar[str] = "Matrix Shard Sharing"
    sort: ClassVar[Sort] = Sort.FACTOR
    pooled: ClassVar[tuple[str, ...]] = ("B",)

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        if role == "B":
            return tensors["B"][:, :side]
        copies = math.ceil(side / rank)
        of_the_dtype = next(iter(tensors.values()))
        return of_the_dtype.new_ones(rank).diag().repeat(1, copies)[:, :side]
