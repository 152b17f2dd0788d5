"""Scaled: one A and several B, with diagonals on both sides of A for each (RandLoRA).

Albert et al. 2025, "RandLoRA: Full-Rank Parameter-Efficient Fine-Tuning of Large Models" (arXiv 2502.00987),
Eq. 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from bishare_dsl.transforms.transform import Own, Start, Tensors, Transform, Width

if TYPE_CHECKING:
    from torch import Tensor


class Scaled(Transform):
    """``dW = sum_i B_i^T diag(by_row_i) A diag(by_input_i)`` over ``count`` matrices B.

    The pools share ``A (r, max d_in)`` and the B, stacked in ``B (count * r, max d_out)``; a narrower site
    uses the leading columns. They are usually random and frozen. The diagonals ``by_row (count, r)``, from
    zero, and ``by_input (count, d_in)``, from one, are private to a site. The update has rank up to
    ``count * r``.
    """

    name: ClassVar[str] = "Scaled"
    title: ClassVar[str] = "Scaled Copies of a Factor"
    owned: ClassVar[tuple[str, ...]] = ("by_row", "by_input")

    count: PositiveInt = Field(8, description="matrices B, each with its diagonals")

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return (rank if role == "A" else self.count * rank), max(widths)

    def start(self, role: str) -> Start:
        return Start({"by_row": "zeros", "by_input": "ones"}.get(role, "kaiming_uniform"))  # type: ignore[arg-type]

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        return {"by_row": Own(self.count, rank), "by_input": Own(self.count, width.d_in)}

    def rows(self, rank: int, width: Width) -> int:
        return self.count * rank

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        factor = tensors[role][:, :side]
        if role == "B":
            return factor
        # (count, r, 1) and (count, 1, d_in) to (count * r, d_in)
        diagonals = tensors["by_row"].unsqueeze(2) * tensors["by_input"].unsqueeze(1)
        return (diagonals * factor).flatten(0, 1)
