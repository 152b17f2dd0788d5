"""Initial values from singular directions of the base's weights.

For a weight ``W = U diag(S) V^T`` a factor A is initialised with rows of V^T, and B, as stored, with rows
of U^T. They belong to the largest or the smallest singular values.

| start | the rows are multiplied by | |
|---|---|---|
| ``svd``, ``svd_bottom`` | ``sqrt(S / scale)`` | ``scale * B A`` is then that part of W (PiSSA, MiLoRA); |
| | | ``sqrt(S)`` if the term starts at zero, because its scale is then free |
| ``svd_vectors``, ``svd_vectors_bottom`` | 1 | |
| ``svd_scaled`` | ``S`` | ``B A`` is then that part, if the other starts as ``svd_vectors`` (LoRA-XS) |
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
from bishare_dsl.plan import Plan, Pool, Tensor
from bishare_dsl.spec import SINGULAR

_POWERS = {"svd_vectors": 0.0, "svd_vectors_bottom": 0.0, "svd_scaled": 1.0}
"""Exponent of the singular values; one half for other initialisations."""

_ROUNDS = 12
"""Rounds of Krylov iteration."""

_DIRECT_SIDE = 1024
"""Matrices with no longer side are decomposed completely.

For directions with singular values 1% apart, iteration leaves errors of 4e-3, which differ between
float32 and float64. This is too much for recomputing them on loading (`bishare_dsl.fingerprint`).
"""

_SPARE = 8
"""Extra directions in the iteration, to improve the accuracy."""


class Directions(NamedTuple):
    """Singular directions of a matrix ``(m, n)``: ``U^T (count, m)``, ``S (count)``, ``V^T (count, n)``."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor


def singular_starts(
    plan: Plan, model: nn.Module, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Compute the tensors of a plan that start as singular directions of the base's weights, by name.

    In float64 the weights get noise of the size of float32 rounding, to expose ambiguous directions. Each
    tensor is on the device of the first weight it is computed from; on the meta device it has only a
    shape. The same weights give the same tensors. Terminals show a progress bar.

    - The factor of a single site: directions of its weight.
    - A shared factor: directions of the concatenated weights, ``[W_1; W_2; ...]`` for A and ``[W_1, W_2,
      ...]`` for B.
    - If a site's private factor and its shared one both start as ``svd``, the private one is fitted to
      the shared one. For B: ``scale * B A = W V V^T``, the part of W along the shared directions; for A
      likewise.

    Raises:
        AdapterError: a weight is not in memory (BS624), or cannot be dequantised (BS623).
    """
    starts = _Starts(plan, model, dtype)
    order = {path: i for i, path in enumerate(plan.terms_of)}
    pools = [pool for pool in plan.pools if plan.tensor[pool.tensor].init in SINGULAR]
    pools.sort(key=lambda pool: (len(pool.members) == 1, order[pool.members[0]]))
    for pool in tqdm(pools, "reading the base's weights", disable=None, leave=False):
        # Contiguous like a loaded tensor, so that kernels give the same last bits.
        starts.values_of[pool.tensor] = starts.make(pool).contiguous()
    values = starts.values_of
    return values | {t.name: values[t.like].clone() for t in plan.tensors if t.like in values}


def fitted(plan: Plan) -> dict[str, str]:
    """Return the private factors that are fitted to a shared factor, with its name."""
    shared = {pool.tensor for pool in plan.pools if len(pool.members) > 1}
    shared_of = {}
    for pool in plan.pools:
        mine = plan.tensor[pool.tensor]
        if len(pool.members) == 1 and mine.init in SINGULAR.difference(_POWERS):
            terms = plan.terms_of[pool.members[0]]
            term = next(term for term in terms if term.tensors.get(pool.role) == mine.name)
            other = plan.tensor[term.tensors["B" if pool.role == "A" else "A"]]
            if other.init == mine.init and other.name in shared:
                shared_of[mine.name] = other.name
    return shared_of


class _Starts:
    """Computes initial values, and stores them for factors fitted to them."""

    def __init__(self, plan: Plan, model: nn.Module, dtype: torch.dtype):
        self.plan = plan
        self.maps = linear_maps(model)
        self.dtype = dtype
        self.fitted = fitted(plan)
        self.values_of: dict[str, torch.Tensor] = {}
        self._last: tuple[object, Directions] | None = None  # A and B of a site follow each other.

    def make(self, pool: Pool) -> torch.Tensor:
        """Compute the tensor of a pool; call this for pools with several members first."""
        tensor = self.plan.tensor[pool.tensor]
        path = pool.members[0]
        is_down = pool.role == "A"
        bottom = tensor.init.endswith("_bottom")
        if len(pool.members) > 1:
            read = (self._weight(path) for path in pool.members)
            stacked = _stack(w if is_down else w.T for w in read)
            singular = directions(stacked, tensor.shape[0], bottom=bottom)
            return _scaled(tensor, singular.values, singular.right)
        if (shared := self.fitted.get(tensor.name)) is not None:
            weight = self._weight(path)
            other = self.values_of[shared].to(weight.device)
            return _fitted(tensor, other, weight if is_down else weight.T)
        key = path, tensor.shape[0], bottom
        if self._last is None or self._last[0] != key:
            self._last = key, directions(self._weight(path), *key[1:])
        singular = self._last[1]
        return _scaled(tensor, singular.values, singular.right if is_down else singular.left)

    def _weight(self, path: str) -> torch.Tensor:
        linear = self.maps[path]
        if linear.replacement() is not None:
            weight = linear.dense().to(self.dtype)
        else:
            stored = linear.stored()
            assert stored is not None, path
            if stored.is_meta and is_offloaded(linear.module):
                raise AdapterError(codes.NO_WEIGHT(path=path, reason="it is offloaded to disk"))
            weight = linear.part(gather(stored).detach()).to(self.dtype)
        if self.dtype != torch.float64 or weight.is_meta:
            return weight
        # Callers use float64 to check whether float32 determines the directions: with equal
        # singular values they change with the rounding, and with this noise.
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight)
        return weight + torch.finfo(torch.float32).eps * weight.abs().max() * noise


def directions(matrix: torch.Tensor, count: int, bottom: bool = False) -> Directions:
    """Find the singular directions of the ``count`` largest or smallest singular values of a matrix.

    The result is exact for the smallest or many values, or a small matrix. Otherwise use block Krylov
    iteration, seeded with fixed random numbers (Musco and Musco 2015, Algorithm 2).
    """
    # Of few directions, iteration is cheaper.
    if bottom or min(matrix.shape) <= max(_DIRECT_SIDE, 2 * _ROUNDS * (count + _SPARE)):
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


def _stack(matrices: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return a matrix with the same right singular directions and values as these matrices stacked."""
    first, *others = matrices
    for matrix in others:
        # Rotating rows preserves both, and R has at most as many rows as columns.
        first = torch.linalg.qr(torch.cat([first, matrix.to(first.device)]), mode="r").R
    return first


def _scaled(tensor: Tensor, values: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    return (values.pow(_POWERS.get(tensor.init, 0.5)) * tensor.amount).unsqueeze(1) * vectors


def _fitted(tensor: Tensor, shared: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the factor F for which ``scale * F^T shared = W^T V V^T``, with ``shared = D V^T``.

    Args:
        tensor: F; its amount is ``scale ** -0.5``.
        shared: the other factor, ``(rank, m)``.
        weight: ``(m, n)``, whose rows correspond to the columns of the other factor.
    """
    squares = shared.square().sum(1, keepdim=True)  # 0 if the weights have no further direction.
    return tensor.amount**2 * (shared @ weight) / squares.clamp(min=torch.finfo().tiny)
