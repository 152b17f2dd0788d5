"""Hadamard: the elementwise product of two low-rank matrices (LoHa, FedPara).

Hyeon-Woo et al. 2022, "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
Proposition 1; Yeh et al. 2024, "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model
Evaluation", for LoHa.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from bishare_dsl.transforms.transform import Own, Start, Tensors, Transform, Width

if TYPE_CHECKING:
    from torch import Tensor


class Hadamard(Transform):
    """``dW = (B^T A) * (B_2^T A_2)``, as a pair of factors whose rows are products of a row of each pair.

    Two pairs of rank ``r`` give an update of rank up to ``r ** 2``. The pools share ``A (r, max d_in)``
    and ``B (r, max d_out)``; a narrower site uses the leading columns. The second pair is private to a
    site unless it has keys.
    """

    name: ClassVar[str] = "Hadamard"
    title: ClassVar[str] = "Hadamard Product"
    owned: ClassVar[tuple[str, ...]] = ("A_2", "B_2")

    def start(self, role: str) -> Start:
        return Start("zeros") if role == "B" else Start("normal", 0.1 if role == "B_2" else 1.0)

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        return {"A_2": Own(rank, width.d_in, width.d_in), "B_2": Own(rank, width.d_out, rank)}

    def rows(self, rank: int, width: Width) -> int:
        return rank**2

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        one = tensors[role][:, :side]
        other = tensors[f"{role}_2"]
        # (r, r, side) to (r * r, side)
        return (one.unsqueeze(1) * other.unsqueeze(0)).flatten(0, 1)
