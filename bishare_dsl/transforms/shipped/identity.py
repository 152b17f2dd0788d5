"""No transform: the pooled factor is the site's factor. Used by LoRA and for sharing at equal shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from bishare_dsl.transforms.transform import Sort, Tensors, Transform, one_width

if TYPE_CHECKING:
    from torch import Tensor


class Identity(Transform):
    """``A = A_s``, ``B = B_s``. The default of a share without ``via``."""

    name: ClassVar[str] = "Identity"
    title: ClassVar[str] = "no transform"
    sort: ClassVar[Sort] = Sort.FACTOR
    plain: ClassVar[tuple[str, ...]] = ("A", "B")

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return rank, one_width(widths)

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        return tensors[role]
