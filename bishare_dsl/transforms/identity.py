"""No transform: a pooled factor is the site's factor. LoRA, and sharing between equal shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from bishare_dsl.transforms.transform import Transform, Width, one_width

if TYPE_CHECKING:
    from torch import Tensor


class Identity(Transform):
    """``A = A_s``, ``B = B_s``. What a share without ``via`` uses."""

    name: ClassVar[str] = "Identity"
    title: ClassVar[str] = "no transform"

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return rank, one_width(widths)

    def factors(
        self, tensors: Mapping[str, Tensor], rank: int, width: Width
    ) -> tuple[Tensor, Tensor]:
        return tensors["A"], tensors["B"]

    def down_rows(
        self, x: Tensor, tensors: Mapping[str, Tensor], rank: int, width: Width
    ) -> Tensor:
        return x @ tensors["A"].mT

    def up_rows(self, z: Tensor, tensors: Mapping[str, Tensor], rank: int, width: Width) -> Tensor:
        return z @ tensors["B"]
