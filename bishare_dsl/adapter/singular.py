"""Starts that read the base: singular directions of its weights.

Of a weight ``W = U diag(S) V^T`` a factor A starts as rows of V^T, and B, as it is stored, as rows of U^T:
those of the largest singular values, or of the smallest.

| start | the rows are multiplied by | |
|---|---|---|
| ``svd``, ``svd_bottom`` | ``sqrt(S / scale)`` | so that ``scale * B A`` is that part of W (PiSSA, MiLoRA); |
| | | ``sqrt(S)`` where the term starts at zero, whose scale is free then |
| ``svd_vectors``, ``svd_vectors_bottom`` | 1 | |
| ``svd_scaled`` | ``S`` | so that ``B A`` is, where the other starts as ``svd_vectors`` (LoRA-XS) |
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.hooks import gather, is_offloaded
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.weights import Weight
from bishare_dsl.plan import Plan, Pool, Tensor
from bishare_dsl.spec import SINGULAR

_POWERS = {"svd_vectors": 0.0, "svd_vectors_bottom": 0.0, "svd_scaled": 1.0}
"""Of the singular values; of the others it is a half."""

_ROUNDS = 12
"""Of Krylov iteration; `benchmarks/singular.py` says how near they come."""

_SMALL = 1024
"""A matrix with a side no longer is decomposed whole.

Iteration leaves directions with values 1% apart uncertain by 4e-3, in float32 otherwise than in float64: too
much to make them again (`bishare_dsl.adapter.recipes`).
"""

_SPARE = 8
"""Directions beyond those wanted, which such iteration is carried out with."""


class Directions(NamedTuple):
    """Singular directions of a matrix ``(m, n)``: ``U^T (count, m)``, ``S (count)``, ``V^T (count, n)``."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor


def singular_starts(
    plan: Plan, model: nn.Module, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Compute the tensors of a plan that start as directions of the base's weights, by name, in this type.

    In float64 the weights get noise as small as the rounding of float32, which shows what is not determined.
    Each is on the device of the first weight that it is read from; on the meta device it has its shape only.
    The same weights give the same tensors. A bar on a terminal tells how far it is.

    - A factor of one site: directions of its weight.
    - One that several share: those of their weights side by side, ``[W_1; W_2; ...]`` for A and
      ``[W_1, W_2, ...]`` for B.
    - If a site's own factor and one that it shares both start as ``svd``, its own is fitted to the shared
      one: ``scale * B A = W V V^T``, the part of W along the shared directions, and for A likewise.

    Raises:
        AdapterError: a weight is not in memory (BS624), or cannot be dequantised (BS623).
    """
    starts = _Starts(plan, model, dtype)
    order = {path: i for i, path in enumerate(plan.terms_of)}
    pools = [pool for pool in plan.pools if plan.tensor[pool.tensor].init in SINGULAR]
    pools.sort(key=lambda pool: (len(pool.members) == 1, order[pool.members[0]]))
    for pool in tqdm(pools, "reading the base's weights", disable=None, leave=False):
        # As a loaded one lies in memory, so that kernels give the same last bits.
        starts.found[pool.tensor] = starts.make(pool).contiguous()
    found = starts.found
    copies = {t.name: found[t.like].clone() for t in plan.tensors if t.like in found}
    return found | copies


def fitted(plan: Plan) -> dict[str, str]:
    """Return the sites' own factors that are fitted to a shared one, with the name of that."""
    shared = {pool.tensor for pool in plan.pools if len(pool.members) > 1}
    found = {}
    for pool in plan.pools:
        mine = plan.tensor[pool.tensor]
        if len(pool.members) == 1 and mine.init in SINGULAR.difference(_POWERS):
            terms = plan.terms_of[pool.members[0]]
            term = next(term for term in terms if term.tensors.get(pool.role) == mine.name)
            other = plan.tensor[term.tensors["B" if pool.role == "A" else "A"]]
            if other.init == mine.init and other.name in shared:
                found[mine.name] = other.name
    return found


class _Starts:
    """The starts that are known so far, and what they are made from."""

    def __init__(self, plan: Plan, model: nn.Module, dtype: torch.dtype):
        self.plan, self.maps, self.dtype = plan, linear_maps(model), dtype
        self.fitted = fitted(plan)
        self.found: dict[str, torch.Tensor] = {}
        self._last: tuple[object, Directions] | None = None  # A and B of a site follow each other.

    def make(self, pool: Pool) -> torch.Tensor:
        """Make the tensor of a pool; those of pools with several members come first."""
        tensor, path = self.plan.tensor[pool.tensor], pool.members[0]
        is_down = pool.role == "A"
        if len(pool.members) > 1:
            read = (self._weight(path) for path in pool.members)
            stacked = _stack(w if is_down else w.T for w in read)
            found = directions(stacked, tensor.shape[0], bottom=_is_bottom(tensor))
            return _scaled(tensor, found.values, found.right)
        if (shared := self.fitted.get(tensor.name)) is not None:
            weight = self._weight(path)
            other = self.found[shared].to(weight.device)
            return _fitted(tensor, other, weight if is_down else weight.T)
        key = path, tensor.shape[0], _is_bottom(tensor)
        if self._last is None or self._last[0] != key:
            self._last = key, directions(self._weight(path), *key[1:])
        found = self._last[1]
        return _scaled(tensor, found.values, found.right if is_down else found.left)

    def _weight(self, path: str) -> torch.Tensor:
        weight = read_weight(self.maps[path]).to(self.dtype)
        if self.dtype != torch.float64 or weight.is_meta:
            return weight
        # Whoever asks for float64 wants to know whether float32 determines the directions: those of equal
        # singular values turn with the rounding, and with this noise.
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight)
        return weight + torch.finfo(torch.float32).eps * weight.abs().max() * noise


def read_weight(weight: Weight) -> torch.Tensor:
    """Return the ``(d_out, d_in)`` weight of a linear map, or what a quantised one stands for.

    Raises:
        AdapterError: it is not in memory (BS624), or cannot be dequantised (BS623).
    """
    if weight.replacement() is not None:
        return weight.dense()
    matrix = weight.matrix()
    if matrix.is_meta and is_offloaded(weight.module):
        raise AdapterError(codes.NO_WEIGHT(path=weight.path, reason="it is offloaded to disk"))
    return gather(matrix)  # type: ignore[no-any-return]


def directions(matrix: torch.Tensor, count: int, bottom: bool = False) -> Directions:
    """Find the singular directions of the ``count`` largest singular values of a matrix, or the smallest.

    Exactly, where these are the smallest or many, or the matrix is small; else by block Krylov iteration,
    which begins with the same random numbers each time (Musco and Musco 2015, Algorithm 2).
    """
    if bottom or is_exact(matrix, count):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        random = torch.Generator().manual_seed(0)
        blocks = [torch.randn(matrix.shape[1], count + _SPARE, generator=random).to(matrix)]
        for _ in range(_ROUNDS):
            blocks.append(torch.linalg.qr(matrix.T @ (matrix @ blocks[-1])).Q)
        q = torch.linalg.qr(torch.cat(blocks[1:], 1)).Q
        u, s, vh = torch.linalg.svd(matrix @ q, full_matrices=False)
        vh = vh @ q.T
    chosen = slice(-count, None) if bottom else slice(count)
    return Directions(u.T[chosen], s[chosen], vh[chosen])


def is_exact(matrix: torch.Tensor, count: int) -> bool:
    """Tell whether so many of the largest directions of a matrix come from its whole decomposition."""
    return min(matrix.shape) <= max(_SMALL, 2 * _ROUNDS * (count + _SPARE))


def _stack(matrices: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return a matrix with the right singular directions and values of all of these, one below the other."""
    first, *others = matrices
    for matrix in others:
        # What rotates rows changes neither, and R has no more of them than columns.
        first = torch.linalg.qr(torch.cat([first, matrix.to(first.device)]), mode="r").R
    return first


def _scaled(tensor: Tensor, values: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    power = _POWERS.get(tensor.init, 0.5)
    return (values.pow(power) * tensor.amount).unsqueeze(1) * vectors


def _fitted(tensor: Tensor, shared: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the factor F for which ``scale * F^T shared = W^T V V^T``, with ``shared = D V^T``.

    Args:
        tensor: F; its amount is ``scale ** -0.5``.
        shared: the other factor, ``(rank, m)``.
        weight: ``(m, n)``, on whose rows the other factor stands.
    """
    squares = shared.square().sum(1, keepdim=True)  # 0 where the weights have no direction more.
    return tensor.amount**2 * (shared @ weight) / squares.clamp(min=torch.finfo().tiny)


def _is_bottom(tensor: Tensor) -> bool:
    return tensor.init.endswith("_bottom")
