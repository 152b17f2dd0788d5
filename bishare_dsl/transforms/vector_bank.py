"""VectorBank: factors put together from a bank of vectors that the whole pool shares (VB-LoRA).

Li et al. 2024, "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks", Equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveFloat, PositiveInt, model_validator

from bishare_dsl.transforms.transform import Own, Start, Transform, Width

if TYPE_CHECKING:
    from torch import Tensor


class VectorBank(Transform):
    """Each stretch of ``length`` values of a factor is a mixture of ``top_k`` vectors of the bank.

    The pool shares ``bank (vectors, length)``. A site has logits ``L_A (r * d_in / length, vectors)``
    and ``L_B (r * d_out / length, vectors)``, a row for each stretch, rank by rank. With ``S`` the
    ``top_k`` largest of a row, the stretch is ``sum_{i in S} softmax(l_S)_i bank_i``.
    """

    name: ClassVar[str] = "VectorBank"
    title: ClassVar[str] = "Vector Bank"
    pooled: ClassVar[tuple[str, ...]] = ("bank",)
    owned: ClassVar[tuple[str, ...]] = ("L_A", "L_B")

    vectors: PositiveInt = 90
    length: PositiveInt = 256
    top_k: PositiveInt = 2
    bank_bound: PositiveFloat = 0.02
    logits_deviation: PositiveFloat = 0.1

    @model_validator(mode="after")
    def _enough_vectors(self) -> VectorBank:
        if self.top_k > self.vectors:
            raise ValueError(f"`top_k` {self.top_k} is more than the {self.vectors} vectors")
        return self

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return self.vectors, self.length

    def start(self, role: str) -> Start:
        if role == "bank":
            return Start("uniform", self.bank_bound)
        return Start("normal", self.logits_deviation)

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        for side in width:
            if side % self.length:
                raise ValueError(f"vectors of length {self.length} cannot tile a width of {side}")
        return {
            "L_A": Own(rank * width.d_in // self.length, self.vectors),
            "L_B": Own(rank * width.d_out // self.length, self.vectors),
        }

    def zeros(self, zero: frozenset[str]) -> frozenset[str]:
        return zero & {"bank"}

    def factors(
        self, tensors: Mapping[str, Tensor], rank: int, width: Width
    ) -> tuple[Tensor, Tensor]:
        bank = tensors["bank"]
        return self._mix(bank, tensors["L_A"], rank), self._mix(bank, tensors["L_B"], rank)

    def _mix(self, bank: Tensor, logits: Tensor, rank: int) -> Tensor:
        largest = logits.topk(self.top_k, dim=-1)
        weights, chosen = largest[0].softmax(-1), largest[1]
        stretches = (weights.unsqueeze(-1) * bank[chosen]).sum(-2)  # (rank * tiles, length)
        return stretches.reshape(rank, -1)
