"""One small pair that modules stretch, each by kernels of its own: ``dW_i`` is near ``C_i (x) S``.

``C_i = K_B^T K_A`` and ``S = B_s^T A_s`` are of the ranks of the kernels and of the pair. With either given
the other is best as a truncated singular value decomposition of what the given one makes of the updates
(Van Loan). Where S is of rank 1 this is a power iteration for its two vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bishare_dsl.analyse.propose.common import without
from bishare_dsl.analyse.update import Factored

_ROUNDS = 5


@dataclass(frozen=True)
class Kernels:
    """Kernels and the pair that they stretch: each update has ``up`` (count, blocks, size), and ``down``."""

    gains: torch.Tensor
    kernels: Sequence[tuple[torch.Tensor, torch.Tensor]]
    pair: tuple[torch.Tensor, torch.Tensor]

    def rest(self, place: int, update: Factored, count: int) -> Factored:
        """Return what is left of an update."""
        up, down = (
            (kernel[:count, :, None] * side[: min(count, len(kernel)), None, :]).flatten(1)
            for kernel, side in zip(self.kernels[place], self.pair, strict=True)
        )
        width = update.left.shape[1], update.right.shape[1]
        return without(update, down[:, : width[1]], up[:, : width[0]])


def find_kernels(updates: Sequence[Factored], size: int, many: bool, count: int) -> Kernels:
    """Find a pair and kernels that keep much: a maximum, if not always the highest.

    Args:
        updates: of the pool.
        size: columns of the pair.
        many: whether the ranks are those of the kernels, of a pair of rank 1; otherwise those of the pair,
            and kernels are of rank 1.
        count: of ranks.
    """
    lefts = [_cut(u.values[:, None] * u.left, size) for u in updates]
    rights = [_cut(u.right, size) for u in updates]
    random = torch.Generator().manual_seed(0)
    u, v = (torch.nn.functional.normalize(torch.randn(size, generator=random), dim=0) for _ in "uv")
    for _ in range(_ROUNDS):
        u = _better(lefts, u, rights, v)
        v = _better(rights, v, lefts, u)
    blocks = [(left @ u).t() @ (right @ v) for left, right in zip(lefts, rights, strict=True)]
    if many:
        found = [torch.linalg.svd(block, full_matrices=False) for block in blocks]
        gains = torch.zeros(count, dtype=torch.float64)
        for _, s, _ in found:
            gains[: len(s)] += s[:count].double().square()
        kernels = [(a.t(), s[:, None] * b) for a, s, b in found]
        return Kernels(gains, kernels, (u.expand(count, -1), v.expand(count, -1)))
    strongest = [_strongest(block) for block in blocks]
    left, values, right = _pair(lefts, rights, strongest)
    pair = (left[:count].t() * values[:count]) @ right[:count]
    strongest = [
        _strongest(torch.einsum("rks,rls->kl", one @ pair, other))
        for one, other in zip(lefts, rights, strict=True)
    ]
    left, values, right = _pair(lefts, rights, strongest)
    whole = sum(float(s.square()) for _, s, _ in strongest)
    kernels = [(a.expand(count, -1), (s * b).expand(count, -1)) for a, s, b in strongest]
    gains = values[:count].double().square() / whole
    return Kernels(gains, kernels, (left[:count], values[:count, None] / whole * right[:count]))


def _pair(
    lefts: Sequence[torch.Tensor],
    rights: Sequence[torch.Tensor],
    kernels: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the singular vectors, as rows, of what kernels of rank 1 make of the updates."""
    both = zip(kernels, lefts, strict=True)
    up = torch.cat([s * torch.einsum("k,rks->rs", a, left) for (a, s, _), left in both])
    both = zip(kernels, rights, strict=True)
    down = torch.cat([torch.einsum("k,rks->rs", b, right) for (_, _, b), right in both])
    left, values, right = torch.linalg.svd(up.t() @ down)
    return left.t(), values, right


def _better(
    ours: Sequence[torch.Tensor],
    one: torch.Tensor,
    theirs: Sequence[torch.Tensor],
    other: torch.Tensor,
) -> torch.Tensor:
    """Turn a vector to where more is kept: ``sum |ours one^T theirs other|^2`` does not fall."""
    found = torch.zeros_like(one)
    for mine, their in zip(ours, theirs, strict=True):
        along = their @ other
        found += torch.einsum("rks,rk->s", mine, along @ (along.t() @ (mine @ one)))
    better: torch.Tensor = torch.nn.functional.normalize(found, dim=0)
    return better


def _strongest(block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    left, values, right = torch.linalg.svd(block, full_matrices=False)
    return left[:, 0], values[0], right[0]


def _cut(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Cut rows (rank, width) into blocks, (rank, blocks, size)."""
    whole = math.ceil(rows.shape[1] / size) * size
    padded = torch.nn.functional.pad(rows, (0, whole - rows.shape[1]))
    blocks: torch.Tensor = padded.unflatten(1, (-1, size))
    return blocks
