"""A custom transform that bishare does not ship."""

import torch

from bishare_dsl.testing.reference import reference
from bishare_dsl.transforms import Transform


class Toeplitz(Transform):
    """``A[i, j] = a[r - 1 - i + j]``, and B likewise: each row is the one above, turned right by one.

    The pools share ``a (1, max d_in + r - 1)`` and ``b (1, max d_out + r - 1)``.
    """

    name = "Toeplitz"
    title = "Toeplitz Factors"

    def shared_shape(self, role, rank, widths):
        return 1, max(widths) + rank - 1

    def factor(self, role, tensors, rank, side):
        # Sliding windows of the row, the last first.
        return tensors[role][0, : side + rank - 1].unfold(0, side, 1).flip(0)


@reference("Toeplitz")
def toeplitz(term):
    """Compute the factors entry by entry."""

    def whole(row, width):
        r = term.rank
        return torch.stack(
            [torch.stack([row[0, r - 1 - i + j] for j in range(width)]) for i in range(r)]
        )

    return whole(term["B"], term.d_out).T, whole(term["A"], term.d_in)
