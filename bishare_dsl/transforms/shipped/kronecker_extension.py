"""KE, Kronecker Extension: small shared factors, and a kernel for each site.

Section 3.2.3, Equation 6, Algorithm 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveInt

from bishare_dsl.diagnostics import Problem
from bishare_dsl.diagnostics.codes import plan as codes
from bishare_dsl.transforms.transform import Own, Sort, Start, Tensors, Transform, Width, divisors

if TYPE_CHECKING:
    from bishare_dsl.transforms.factor import Factor


class KroneckerExtension(Transform):
    """``A = K_A (x) A_s`` and ``B = K_B (x) B_s``, with shared factors ``size`` wide.

    Section 4.4 names the parameterisations a_b: ``a`` shared rows, ``b`` rows of the kernel, and rank ``a
    * b``. With ``k = ceil(width / size)``:

    - ``r_1``, the default: ``A_s (r, size)``, ``K_A (1, k)``;
    - ``shared_rank = a``: ``A_s (a, size)``, ``K_A (r / a, k)``; ``1_r`` is ``shared_rank = 1``;
    - ``rowwise``: ``A_s (r, size)``, ``K_A (r, k)``, and row i of A is ``K_A[i] (x) A_s[i]`` (Table 8).

    If ``size`` does not divide a width, the product is wider than the site and is cropped.
    """

    name: ClassVar[str] = "KE"
    title: ClassVar[str] = "Kronecker Extension"
    sort: ClassVar[Sort] = Sort.FACTOR
    place: ClassVar[Mapping[str, str]] = {"K_A": "A", "K_B": "B"}
    owned: ClassVar[tuple[str, ...]] = ("K_A", "K_B")
    auto: ClassVar[tuple[str, ...]] = ("size",)

    size: PositiveInt = Field(256, description="columns of the shared factors")
    kernel: Literal["kaiming_normal", "kaiming_uniform", "ones"] = Field(
        "kaiming_normal", description="how the kernels start"
    )
    shared_rank: PositiveInt | None = Field(
        None,
        description="rows of the shared factors, of which the rank is a multiple; by default all",
    )
    rowwise: bool = Field(False, description="a kernel row for each row of the shared factors")

    def check_rank(self, rank: int) -> None:
        if self.rowwise and self.shared_rank not in (None, rank):
            raise ValueError(
                f"with `rowwise` a shared factor has all {rank} rows: leave out "
                f"shared_rank = {self.shared_rank}"
            )
        if self.shared_rank is not None and rank % self.shared_rank:
            raise ValueError(
                f"it is not a multiple of shared_rank = {self.shared_rank}, the rows of the shared factor"
            )

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return self.shared_rank or rank, self.size

    def fan_in(self, role: str, rank: int, widths: Sequence[int]) -> int:
        return (self.shared_rank or rank) if role == "B" else self.size

    def start(self, role: str) -> Start:
        return Start(self.kernel) if role in self.owned else super().start(role)

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        rows = rank if self.rowwise else rank // (self.shared_rank or rank)
        k_in = math.ceil(width.d_in / self.size)
        k_out = math.ceil(width.d_out / self.size)
        return {
            "K_A": Own(rows, k_in, fan_in=k_in),
            "K_B": Own(rows, k_out, fan_in=rows),
        }

    def reach(self, rank: int, width: Width) -> int:
        if self.rowwise:
            return super().reach(rank, width)
        shared = self.shared_rank or rank
        blocks = rank // shared
        reached = []
        for side in width:
            # Each copy of the shared factor adds its rank, and the cropped one the rank of what is left.
            copies, rest = divmod(side, self.size)
            whole = min(blocks, copies) * min(shared, self.size)
            cropped = min(shared, rest) if blocks > copies else 0
            reached.append(whole + cropped)
        return min(super().reach(rank, width), *reached)

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Factor:
        from bishare_dsl.transforms.factor import Kron

        return Kron(tensors[f"K_{role}"], tensors[role], side, self.rowwise)

    def review(self, rank: int, widths: Sequence[Width]) -> Iterable[Problem]:
        sides = sorted({side for width in widths for side in width})
        if odd := [side for side in sides if side % self.size]:
            near = sorted(sorted(divisors(sides), key=lambda d: abs(d - self.size))[:6])
            large = "no width is so large; " if self.size > max(sides) else ""
            yield codes.KERNEL_CROPS(
                size=self.size,
                widths=", ".join(map(str, odd)),
                loc=("via", "options", "size"),
                help=f"{large}sizes that divide every width here: {', '.join(map(str, near))}",
            )
