"""GT, Gate Transformation: low-rank gates around a small shared pair.

Section 3.2.2, Equation 4, Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveInt

from bishare_dsl.diagnostics import Problem
from bishare_dsl.diagnostics.codes import plan as codes
from bishare_dsl.transforms.transform import Own, Start, Tensors, Transform, Width

if TYPE_CHECKING:
    from torch import Tensor


class GateTransformation(Transform):
    """``dW = G_ou G_od B_s A_s G_iu G_id``, with ``A_s (r, m)``, ``B_s (n, r)`` and ``m = n = size``.

    Each site has four gates of rank ``g = gate_rank``: ``G_id (g, d_in)``, ``G_iu (m, g)``, ``G_od (g,
    n)`` and ``G_ou (d_out, g)``. The update's rank is at most ``g``, whatever ``r`` is, because the
    product between the gates, ``G_od B_s A_s G_iu``, is only ``(g, g)``. So the effective pair has
    ``min(r, g)`` rows, and no ``m x n`` matrix is ever formed.
    """

    name: ClassVar[str] = "GT"
    title: ClassVar[str] = "Gate Transformation"
    owned: ClassVar[tuple[str, ...]] = ("G_id", "G_iu", "G_od", "G_ou")
    auto: ClassVar[tuple[str, ...]] = ("size",)

    size: PositiveInt = Field(1024, description="columns of the shared factors")
    gates: Literal["kaiming_uniform", "kaiming_normal", "ones"] = Field(
        "kaiming_uniform", description="how the gates start"
    )
    gate_rank: PositiveInt = Field(
        1, description="rank of a gate, which bounds the rank of the update"
    )

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return rank, self.size

    def start(self, role: str) -> Start:
        return Start(self.gates) if role in self.owned else super().start(role)

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        rows = self.gate_rank
        return {
            "G_id": Own(rows, width.d_in, fan_in=width.d_in),
            "G_iu": Own(rows, self.size, fan_in=rows),
            "G_od": Own(rows, self.size, fan_in=self.size),
            "G_ou": Own(rows, width.d_out, fan_in=rows),
        }

    def rows(self, rank: int, width: Width) -> int:
        return min(rank, self.gate_rank)

    def reach(self, rank: int, width: Width) -> int:
        return min(self.rows(rank, width), self.size, *width)

    def fits(self, option: str, sides: Collection[int]) -> bool:
        # Shared factors save only while they are small beside the modules that read them.
        return 4 * self.size <= max(sides)

    def factors(self, tensors: Tensors, rank: int, width: Width) -> tuple[Tensor, Tensor]:
        if rank < self.gate_rank:
            down = tensors["A"] @ tensors["G_iu"].mT  # (r, g)
            return down @ tensors["G_id"], tensors["B"] @ tensors["G_od"].mT @ tensors["G_ou"]
        # Multiply in this order: with one row of a gate, the other order takes three times as long.
        down = tensors["G_iu"] @ tensors["A"].mT  # (g, r)
        up = tensors["G_od"] @ tensors["B"].mT
        return tensors["G_id"], down @ up.mT @ tensors["G_ou"]

    def review(self, rank: int, widths: Sequence[Width]) -> Iterable[Problem]:
        # The user has set it explicitly.
        if self.gate_rank < rank and "gate_rank" not in self.model_fields_set:
            yield codes.GATE_RANK(rank=rank, gate_rank=self.gate_rank, loc=("via",))
