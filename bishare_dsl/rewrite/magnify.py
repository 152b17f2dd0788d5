"""Scale a linear layer's output with all terms, by row of its weight, as `magnitude` requires."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bishare_dsl.models.weights import bias_of, products, row_norms
from bishare_dsl.rewrite import ops
from bishare_dsl.transforms.shipped.magnitude import bounded_ratio


def magnify(
    y: Tensor,
    layer: nn.Module,
    mu: ops.Applied,
    downs: Sequence[ops.Applied] = (),
    ups: Sequence[ops.Applied] = (),
    scales: Sequence[float] = (),
) -> Tensor:
    """Compute ``g (y - bias) + bias``, with ``g = (1 + mu) |W_i| / |W_i + dW_i|``; without terms ``1 + mu``.

    Computed as ``y + (g - 1) (y - bias)``: if g is 1 the result is y, bit for bit. The lengths have no
    gradient, as in DoRA, Sec. 4.3.

    Args:
        y: ``(..., d_out)``, the layer's output with all terms.
        layer: of the base; its bias is not scaled.
        mu: ``(1, d_out)``; in a mixed batch, as for factors, of each adapter.
        downs: the A of each term included in the length, ``(rows, d_in)``.
        ups: the B of these terms, ``(rows, d_out)``.
        scales: of these terms.
    """
    rows = mu.rows if isinstance(mu, ops.OfRows) else None
    with ops.without_autocast(y.device):
        own = mu.dense().to(y.device)
        change = own.to(torch.promote_types(own.dtype, torch.float32))
        if downs:
            scaled = [scale * up.dense() for up, scale in zip(ups, scales, strict=True)]
            a = torch.cat([down.dense() for down in downs], -2).detach().to(change)
            b = torch.cat(scaled, -2).detach().to(change)
            with torch.no_grad():
                squares = row_norms(layer).to(b).square()
                along = products(layer, a.to(y.dtype))
                ratio = ratio_of_lengths(squares, along.to(b), a, b)
            change = (1 + change) * ratio.unsqueeze(-2) - 1
        bias = bias_of(layer, y)
        if rows is not None:
            y = rows.repeat(y)
            rows.check(y)
        change = change.to(y.dtype)
        free = y if bias is None else y - bias
        if rows is None:
            return y + change.squeeze(0) * free
        return y + rows.grouping.scatter(change * rows.grouping.gather(free), y)


def ratio_of_lengths(squares: Tensor, along: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Compute the `bounded_ratio` ``|W_i| / |W_i + dW_i|`` of each row for ``dW = B^T A``: ``(..., d_out)``.

    Without a ``(d_out, d_in)`` matrix: ``|W_i + dW_i|^2 = |W_i|^2 + 2 sum_r B_ri (W a_r)_i + B_i^T (A
    A^T) B_i``.

    Args:
        squares: ``|W_i|^2``, ``(d_out)``.
        along: ``W a_r`` for each row of A, ``(..., rows, d_out)``.
        a: ``(..., rows, d_in)``, of one adapter or several.
        b: ``(..., rows, d_out)``.
    """
    more = (b * (2 * along + (a @ a.mT) @ b)).sum(-2)
    return bounded_ratio(squares, squares + more)
