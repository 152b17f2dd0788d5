"""VectorBank: factors built from a bank of vectors that the whole pool shares (VB-LoRA).

Li et al. 2024, "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks", Equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from bishare_dsl.transforms.transform import Own, Sort, Start, Tensors, Transform, Width

if TYPE_CHECKING:
    from torch import Tensor


class VectorBank(Transform):
    """Each segment of ``length`` values of a factor is a mixture of ``top_k`` vectors of the bank.

    The pool shares ``bank (vectors, length)``. A site has logits ``L_A (r * d_in / length, vectors)`` and
    ``L_B (r * d_out / length, vectors)``, a row for each segment, in the order of the ranks. If ``S`` are
    the ``top_k`` largest of a row, the segment is ``sum_{i in S} softmax(l_S)_i bank_i``.
    """

    name: ClassVar[str] = "VectorBank"
    title: ClassVar[str] = "Vector Bank"
    sort: ClassVar[Sort] = Sort.FACTOR
    place: ClassVar[Mapping[str, str]] = {"L_A": "A", "L_B": "B"}
    pooled: ClassVar[tuple[str, ...]] = ("bank",)
    owned: ClassVar[tuple[str, ...]] = ("L_A", "L_B")
    auto: ClassVar[tuple[str, ...]] = ("length",)
    exact: ClassVar[tuple[str, ...]] = ("L_A", "L_B")

    vectors: PositiveInt = Field(90, description="vectors in the bank")
    length: PositiveInt = Field(256, description="values of a vector; it divides every width")
    # With one vector the softmax is constant, and the logits would never learn.
    top_k: int = Field(2, ge=2, description="vectors that are mixed for each stretch of a factor")
    bank_bound: PositiveFloat = Field(
        0.02, description="the bank starts uniform between minus this and this"
    )
    logits_deviation: PositiveFloat = Field(
        0.1, description="the logits start normal with this standard deviation"
    )

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
                fitting = ", ".join(str(n) for n in (64, 96, 128, 192, 256, 512) if side % n == 0)
                reason = f"vectors of length {self.length} cannot tile a width of {side}"
                raise ValueError(f"{reason}, as those of {fitting} do" if fitting else reason)
        return {
            "L_A": Own(rank * width.d_in // self.length, self.vectors),
            "L_B": Own(rank * width.d_out // self.length, self.vectors),
        }

    def zeros(self, zero: frozenset[str]) -> frozenset[str]:
        return frozenset("AB" if "bank" in zero else "")  # Both factors depend on it.

    def reach(self, rank: int, width: Width) -> int:
        stretches = min(width) // self.length
        return min(rank, stretches * min(self.vectors, self.length))

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        logits, chosen = self._largest(tensors[f"L_{role}"])
        weights = logits.softmax(-1)
        stretches = (weights.unsqueeze(-1) * tensors["bank"][chosen]).sum(-2)  # (r * tiles, length)
        return stretches.reshape(rank, -1)

    def _largest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ``top_k`` largest logits of each row and their indices; ties go to the first."""
        ordered, places = logits.sort(dim=-1, descending=True, stable=True)
        return ordered[..., : self.top_k], places[..., : self.top_k]
