"""BlockDiagonal: many small factors side by side, each on its own part of the input and output (MELoRA).

Ren et al. 2024, "MELoRA: Mini-Ensemble Low-Rank Adapters for Parameter-Efficient Fine-Tuning", Eq. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from bishare_dsl.transforms.transform import Tensors, Transform, Width, one_width

if TYPE_CHECKING:
    from torch import Tensor


class BlockDiagonal(Transform):
    """``dW = diag(B_1 A_1, ..., B_n A_n)``, with ``n = blocks`` mini-LoRAs of the share's rank ``r``.

    They stand side by side in ``A (r, d_in)`` and ``B (r, d_out)``: as many parameters as a LoRA of
    rank r, and an update of rank up to ``n r``. So the effective factors have ``n r`` rows.
    """

    name: ClassVar[str] = "BlockDiagonal"
    title: ClassVar[str] = "Block Diagonal"

    blocks: PositiveInt = Field(
        4, description="parts that input and output are cut into; they divide every width"
    )

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        if (width := one_width(widths)) % self.blocks:
            fitting = ", ".join(str(n) for n in (2, 3, 4, 5, 6, 8, 16, 32) if width % n == 0)
            raise ValueError(
                f"a width of {width} does not divide into {self.blocks} blocks, as it does into {fitting}"
            )
        return rank, width

    def fan_in(self, role: str, rank: int, widths: Sequence[int]) -> int:
        # Of one mini-LoRA.
        return rank if role == "B" else one_width(widths) // self.blocks

    def rows(self, rank: int, width: Width) -> int:
        return self.blocks * rank

    def reach(self, rank: int, width: Width) -> int:
        return self.blocks * min(rank, *(side // self.blocks for side in width))

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        import torch

        part = side // self.blocks
        minis = (tensors[role][:, i * part : (i + 1) * part] for i in range(self.blocks))
        diagonal: Tensor = torch.block_diag(*minis)
        return diagonal
