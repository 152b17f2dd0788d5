"""Shards: factors built from pieces of a pool, chosen at random for each site (MoS).

Wang et al. 2025, "MoS: Unleashing Parameter Efficiency of Low-Rank Adaptation with Mixture of Shards" (arXiv
2410.00938).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from bishare_dsl.transforms.transform import Own, Sort, Start, Tensors, Transform, Width, one_width

if TYPE_CHECKING:
    from torch import Tensor


class Shards(Transform):
    """Each row of a factor concatenates pieces of the pool: ``A[i] = [a_{i,1}, ..., a_{i,shards}]``.

    The pools share ``A (r, d_in)`` and ``B (r, d_out)``, whose rows have ``shards`` pieces each. A site's
    ``rows`` rows use randomly chosen pieces of the ``r * shards``, without repetition, separately for A
    and B. The indices ``I_A`` and ``I_B``, ``(rows * shards, 2)``, come from the seed and are never
    trained.
    """

    name: ClassVar[str] = "Shards"
    title: ClassVar[str] = "Mixture of Shards"
    sort: ClassVar[Sort] = Sort.FACTOR
    place: ClassVar[Mapping[str, str]] = {"I_A": "A", "I_B": "B"}
    owned: ClassVar[tuple[str, ...]] = ("I_A", "I_B")
    fixed: ClassVar[tuple[str, ...]] = ("I_A", "I_B")
    exact: ClassVar[tuple[str, ...]] = ("I_A", "I_B")

    site_rows: PositiveInt = Field(8, alias="rows", description="rows of the factors of a site")
    shards: PositiveInt = Field(
        4, description="pieces that a row is cut into; they divide every width"
    )

    def check_rank(self, rank: int) -> None:
        if rank < self.site_rows:
            raise ValueError(f"a pool of {rank} rows is too few for the {self.site_rows} of a site")
        if rank * self.shards > 256**2:
            raise ValueError(f"{rank} rows of {self.shards} shards are more than 65,536 shards")

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return rank, one_width(widths, self.shards, "shards")

    def fan_in(self, role: str, rank: int, widths: Sequence[int]) -> int:
        return self.site_rows if role == "B" else one_width(widths)

    def start(self, role: str) -> Start:
        return Start("choice") if role in self.fixed else super().start(role)

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        chosen = Own(self.site_rows * self.shards, 2, fan_in=rank * self.shards)
        return dict.fromkeys(self.fixed, chosen)

    def rows(self, rank: int, width: Width) -> int:
        return self.site_rows

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        digits = tensors[f"I_{role}"].long()
        chosen = (digits[:, 0] * 256 + digits[:, 1]) % (rank * self.shards)
        pieces = tensors[role].reshape(rank * self.shards, -1)  # (r * shards, side / shards)
        return pieces[chosen].reshape(self.site_rows, side)
