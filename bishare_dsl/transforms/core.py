"""Core: a small matrix between two factors, each of the three shared as its key says (LoRA-XS, DenseLoRA).

Bałazy et al. 2024, "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters", Eq. 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from bishare_dsl.transforms.transform import Own, Start, Tensors, Transform, Width

if TYPE_CHECKING:
    from torch import Tensor


class Core(Transform):
    """``dW = B^T core^T A``: the paper's ``B R A``, with ``core (r, r)`` its R transposed, as B is stored.

    The pools share ``A (r, max d_in)`` and ``B (r, max d_out)``; a narrower site takes the leading
    columns. The core is each site's own, unless it has a key. It starts at zero, so A and B may be random.
    """

    name: ClassVar[str] = "Core"
    title: ClassVar[str] = "Core between Factors"
    owned: ClassVar[tuple[str, ...]] = ("core",)
    batched: ClassVar[bool] = True

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return rank, max(widths)

    def start(self, role: str) -> Start:
        return Start("zeros" if role == "core" else "kaiming_uniform")

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        return {"core": Own(rank, rank, fan_in=rank)}

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        factor = tensors[role][..., :side]
        # On the side of B, so that sites of one A project their input once.
        return factor if role == "A" else tensors["core"] @ factor
