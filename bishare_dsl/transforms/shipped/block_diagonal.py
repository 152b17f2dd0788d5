"""BlockDiagonal: small factors, each for its part of the input and output (MELoRA, BD-LoRA).

Ren et al. 2024, "MELoRA: Mini-Ensemble Low-Rank Adapters for Parameter-Efficient Fine-Tuning", Eq. 4. For
a single factor: Wang et al. 2025, "Block-Diagonal LoRA for Eliminating Communication Overhead in Tensor
Parallel LoRA Serving".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveInt

from bishare_dsl.transforms.transform import Tensors, Transform, Width, one_width

if TYPE_CHECKING:
    from torch import Tensor


class BlockDiagonal(Transform):
    """``dW = diag(B_1, ..., B_n) diag(A_1, ..., A_n)``: ``n = blocks`` mini-LoRAs of the share's rank ``r``.

    They are stored as ``A (r, d_in)`` and ``B (r, d_out)``: as many parameters as a LoRA of rank r, and
    an update of rank up to ``n r``. The effective factors have ``n r`` rows. If only one side is ``cut``,
    the other factor is dense: A is ``(n r, d_in)``, or B ``(n r, d_out)``.
    """

    name: ClassVar[str] = "BlockDiagonal"
    title: ClassVar[str] = "Block Diagonal"
    later: ClassVar[tuple[str, ...]] = ("cut",)

    blocks: PositiveInt = Field(
        4, description="parts that a side is cut into; they divide its every width"
    )
    cut: Literal["both", "in", "out"] = Field(
        "both", description="the sides whose factors are block diagonal"
    )

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        if not self._is_cut(role):
            return self.blocks * rank, one_width(widths)
        return rank, one_width(widths, self.blocks, "blocks")

    def fan_in(self, role: str, rank: int, widths: Sequence[int]) -> int:
        # For one mini-LoRA.
        blocks = self.blocks if self._is_cut(role) else 1
        return self.blocks * rank // blocks if role == "B" else one_width(widths) // blocks

    def rows(self, rank: int, width: Width) -> int:
        return self.blocks * rank

    def reach(self, rank: int, width: Width) -> int:
        minis = [
            min(rank, side // self.blocks) if self._is_cut(role) else rank
            for role, side in zip("AB", width, strict=True)
        ]
        return min(self.blocks * min(minis), *width)

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        import torch

        if not self._is_cut(role):
            return tensors[role]
        part = side // self.blocks
        minis = (tensors[role][:, i * part : (i + 1) * part] for i in range(self.blocks))
        diagonal: Tensor = torch.block_diag(*minis)
        return diagonal

    def _is_cut(self, role: str) -> bool:
        return self.cut in ("both", "in" if role == "A" else "out")
