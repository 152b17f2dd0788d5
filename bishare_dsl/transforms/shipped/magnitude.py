"""Magnitude: a site's output, scaled by row (DoRA, and IA3 on the outputs).

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", Eq. 5, with the magnitude relative to the
norm of the base's rows. Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper
than In-Context Learning", Sec. 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bishare_dsl.spec.spec import MAGNITUDE
from bishare_dsl.transforms.transform import Start, Transform, one_width

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 1000.0
"""The largest ratio of lengths, for rows that the terms all but cancel: their direction is then noise."""


def bounded_ratio(before: Tensor, after: Tensor) -> Tensor:
    """Compute the ratio of lengths from their squares: at most `LONGEST`, and 1 if both are 0."""
    # The bound also covers a square that rounding makes negative.
    ratio = (before / after.maximum(before / LONGEST**2)).sqrt()
    return ratio.where(before != after, 1)


class Magnitude(Transform):
    """``y = g (W x + sum of terms) + b``, ``g = (1 + mu) |W_i| / |W_i + dW_i|`` for each output i.

    It is created by the statement `magnitude`, not by `via`. The pools share ``mu (1, d_out)``, which
    starts at 0. The ratio of lengths is at most `LONGEST`. With ``plain``, ``g = 1 + mu``. It adds no
    update: `bishare_dsl.rewrite.magnify` applies it to the output of a site with all its terms.
    """

    name: ClassVar[str] = MAGNITUDE
    title: ClassVar[str] = "Magnitude"
    pooled: ClassVar[tuple[str, ...]] = ("mu",)
    linear: ClassVar[bool] = False

    is_plain: bool = Field(False, alias="plain", description="leave the norms of the rows out")

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        return 1, one_width(widths[1::2])  # Inputs and outputs alternate in `widths`.

    def start(self, role: str) -> Start:
        return Start("zeros")
