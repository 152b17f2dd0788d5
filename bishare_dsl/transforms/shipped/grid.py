"""Grid: a small LoRA for each block of a grid over the weight (GraLoRA).

Jung et al. 2025, "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning" (arXiv
2505.20355).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from bishare_dsl.transforms.transform import Tensors, Transform, Width, one_width

if TYPE_CHECKING:
    from torch import Tensor


class Grid(Transform):
    """``dW[m, n] = B_mn^T A_mn`` for each of ``blocks ** 2`` blocks, of rank ``r / blocks`` each.

    The columns of input part n in ``A (r, d_in)`` contain the ``A_mn``, stacked by output part m. The
    columns of output part m in ``B (r, d_out)`` contain the ``B_mn``, stacked by n. This takes the
    parameters of a LoRA of rank r, for an update of rank up to ``blocks * r``.
    """

    name: ClassVar[str] = "Grid"
    title: ClassVar[str] = "Grid of Blocks"

    blocks: PositiveInt = Field(
        2, description="parts of input and of output; they divide the rank and every width"
    )

    def check_rank(self, rank: int) -> None:
        if rank % self.blocks:
            low = rank - rank % self.blocks
            near = f"{low} and {low + self.blocks} are" if low else f"{self.blocks} is"
            raise ValueError(f"it is not a multiple of blocks = {self.blocks}, as {near}")

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return rank, one_width(widths, self.blocks, "blocks")

    def fan_in(self, role: str, rank: int, widths: Sequence[int]) -> int:
        return rank if role == "B" else one_width(widths) // self.blocks

    def rows(self, rank: int, width: Width) -> int:
        return self.blocks * rank

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        import torch

        part = side // self.blocks
        rows = rank // self.blocks
        columns = [tensors[role][:, i * part : (i + 1) * part] for i in range(self.blocks)]
        if role == "A":
            diagonal: Tensor = torch.block_diag(*columns)
            return diagonal
        stacked = [
            torch.block_diag(*(column[n * rows : (n + 1) * rows] for column in columns))
            for n in range(self.blocks)
        ]
        return torch.cat(stacked)
