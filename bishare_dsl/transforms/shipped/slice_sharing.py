"""SS, Slice Sharing: a window of a factor that is as wide as the widest site.

Section 3.2.1, Equation 3, Algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from bishare_dsl.transforms.transform import Sort, Tensors, Transform

if TYPE_CHECKING:
    from torch import Tensor


class SliceSharing(Transform):
    """``A = A_s[:, window]``, ``B = B_s[:, window]``, with ``A_s (r, max d_in)`` and ``B_s (r, max d_out)``.

    The maxima are over the sites of the pool. The window is at the start (``leading``), at the end
    (``trailing``) or in the middle (``centre``, best in Table 4).
    """

    name: ClassVar[str] = "SS"
    title: ClassVar[str] = "Slice Sharing"
    sort: ClassVar[Sort] = Sort.FACTOR
    plain: ClassVar[tuple[str, ...]] = ("A", "B")

    window: Literal["centre", "leading", "trailing"] = Field(
        "centre",
        alias="slice",
        description="where in the shared factor a narrower site's part lies",
    )

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor:
        spare = tensors[role].shape[-1] - side
        first = {"leading": 0, "centre": spare // 2, "trailing": spare}[self.window]
        return tensors[role][..., first : first + side]
