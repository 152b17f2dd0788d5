"""Core: small matrices between two factors, each shared by its own key (LoRA-XS, MetaTT).

Bałazy et al. 2024, "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters", Eq. 2.
Lopez-Piqueres et al. 2025, "MetaTT: A Global Tensor-Train Adapter for Parameter-Efficient Fine-Tuning".
For combinations of cores: TinyLoRA, "Learning to Reason in 13 Parameters" (arXiv 2602.04118).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, NonNegativeInt

from bishare_dsl.transforms.transform import (
    Counted,
    Own,
    Sort,
    Start,
    Tensors,
    Transform,
    Width,
    weighted_sum,
)

if TYPE_CHECKING:
    from torch import Tensor


class Core(Transform):
    """``dW = B^T core_n^T ... core^T A``. With one core: the paper's ``B R A``, with R transposed.

    The pools share ``A (r, max d_in)`` and ``B (r, max d_out)``; a narrower site uses the leading
    columns. A core ``(r, r)`` is private to a site unless it has a key. With keys for all cores this is a
    tensor train. The first core starts at zero, so A, B and the other cores may be random.

    With a ``count`` the first core is ``sum_i c[i] core_i``. The matrices ``(r, r)`` are stacked in
    ``core (count * r, r)`` and usually frozen; the coefficients ``c (1, count)`` start at zero.
    """

    name: ClassVar[str] = "Core"
    title: ClassVar[str] = "Cores between Factors"
    owned: ClassVar[tuple[str, ...]] = ("core", "core_2", "core_3", "c")
    plain: ClassVar[tuple[str, ...]] = ("A", "B")
    sort: ClassVar[Sort] = Sort.BETWEEN
    later: ClassVar[tuple[str, ...]] = ("cores", "count")

    cores: int = Field(1, ge=1, le=3, description="matrices between A and B, 1 to 3")
    count: NonNegativeInt = Field(
        0, description="matrices that the first core is a combination of; 0 if it is one itself"
    )

    @property
    def cores_between(self) -> tuple[str, ...]:
        """The roles of the cores, from A to B."""
        return self.owned[: self.cores]

    @property
    def roles(self) -> tuple[str, ...]:
        return (*self.pooled, *self.cores_between, *(["c"] if self.count else []))

    def start(self, role: str) -> Start:
        if role == "core" and self.count:
            return Start("kaiming_normal")
        return Start("zeros" if role in ("core", "c") else "kaiming_uniform")

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        own = dict.fromkeys(self.cores_between, Own(rank, rank, fan_in=rank))
        if self.count:  # The matrices are sampled from N(0, 1 / r).
            own |= {"core": Own(self.count * rank, rank, fan_in=2 * rank), "c": Own(1, self.count)}
        return own

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        factor = tensors[role][..., :side]
        # Applied to B, so that sites with a common A project their input once; small products come first.
        return factor if role == "A" else self.matrix(tensors, rank) @ factor

    def matrix(self, tensors: Tensors, rank: int) -> Tensor:
        first = tensors["core"]
        if self.count:
            first = weighted_sum(tensors["c"], first, self.count)
        return self._times_others(first, tensors)

    def counted(self, place: str) -> Counted | None:
        return Counted(self.count, "c") if self.count and place == "between" else None

    def stacked(self, place: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        return self._times_others(tensors["core"], tensors)

    def _times_others(self, product: Tensor, tensors: Tensors) -> Tensor:
        for core in self.cores_between[1:]:
            product = product @ tensors[core]
        return product
