"""Joint energy: how much of many updates one common A, one common B, or one common pair keeps.

For updates ``dW_i`` in a pool, one common A of rank k (each update has a private B) keeps at most the k
largest eigenvalues of ``sum dW_i^T dW_i``. One common B keeps at most those of ``sum dW_i dW_i^T``. One
common pair adds the same to all n modules; it keeps n times the k largest squared singular values of the
mean. Each is reported as a fraction of ``sum |dW_i|^2``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from bishare_dsl.analyse.update import Factored, Update
from bishare_dsl.export.from_peft import selection_of
from bishare_dsl.language import parse_spec
from bishare_dsl.models.site import Architecture
from bishare_dsl.plan import build_plan
from bishare_dsl.spec import Selection, Spec

KEYS = (
    *("layer", "parent, layer", "layer // 2", "layer // 4", "layer // 8", "kind, layer // 2"),
    *("kind, layer // 4", "kind", "parent", "model"),
)
"""Keys of the language to compare, from fine to coarse."""
ROLES = ("A", "B", "A and B")
_DOUBLE, _LARGE = 600, 2048
"""Up to these numbers of rows, eigenvalues are computed in float64, and directly instead of iteratively."""
_MORE, _ROUNDS = 16, 8


@dataclass(frozen=True)
class Joint:
    """The energy of an adapter that common factors under a key keep.

    Attributes:
        key: as in a share.
        role: the common factor: ``A``, ``B``, or ``A and B``.
        pools: the number of common factors.
        modules: the number of modules in the largest pool.
        kept: the fraction of the energy that is kept, by rank.
        groups: the modules of each pool. Keys with equal groups are the same choice under several names.
    """

    key: str
    role: str
    pools: int
    modules: int
    kept: Mapping[int, float]
    groups: frozenset[tuple[str, ...]] = field(default=frozenset(), repr=False)


def spectrum(updates: Sequence[Update], role: str, count: int) -> torch.Tensor:
    """Return the energy that each further rank of a common factor keeps, in falling order, as float64.

    The result has at least ``count`` ranks if the updates have that many.
    """
    if role == "A and B":
        return _of_mean([update.whole for update in updates], count)
    if role == "A":
        rows = [u.trained.values[:, None] * u.trained.right for u in updates]
    else:
        rows = [u.whole.values[:, None] * u.whole.left for u in updates]
    if len(rows) == 1:  # The rows of a single update are orthogonal.
        return rows[0].double().square().sum(dim=1)
    return _squares(torch.cat(rows), count)


def energy(updates: Sequence[Update], role: str) -> float:
    """Return the energy of the updates, the most that a common factor can keep."""
    return sum((u.trained if role == "A" else u.whole).energy for u in updates)


def joint(updates: Sequence[Update], base: Architecture, ranks: Sequence[int]) -> list[Joint]:
    """Return the energy that common factors keep, for each key and role. The compiler groups the modules."""
    by_path = {update.site.path: update for update in updates}
    adapted = Selection(include=selection_of([update.site for update in updates], base))
    # Some keys give equal pools.
    cached: dict[tuple[str, tuple[str, ...]], torch.Tensor] = {}
    rows, most = [], max(ranks)
    for key in KEYS:
        for role in ROLES:
            spec = _spec(key, role).model_copy(update={"target": adapted})
            pools = [
                [by_path[path] for path in pool.members]
                for pool in build_plan(spec, base)[0].pools
                if pool.role == role[0]
            ]
            kept = torch.zeros(len(ranks), dtype=torch.float64)
            for pool in pools:
                same = role, tuple(update.site.path for update in pool)
                if same not in cached:
                    sums = torch.nn.functional.pad(spectrum(pool, role, most).cumsum(0), (1, 0))
                    cached[same] = sums[torch.tensor(ranks).clamp(max=len(sums) - 1)]
                kept += cached[same]
            parts = (kept / sum(energy(pool, role) for pool in pools)).clamp(0, 1)
            largest = max(map(len, pools))
            by_rank = dict(zip(ranks, parts.tolist(), strict=True))
            groups = frozenset(tuple(update.site.path for update in pool) for pool in pools)
            rows.append(Joint(key, role, len(pools), largest, by_rank, groups))
    return rows


def _spec(key: str, role: str) -> Spec:
    """Write a share with this key and equal widths in each pool, so that it needs no transform."""
    before = "" if key == "model" else f"{key}, "
    per = f"A per {before}in B per {before}out" if role != "A and B" else f"per {before}in, out"
    return parse_spec(f"spec one  target all  share x  {per}  rank 1")


def _squares(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Return the squared singular values of a matrix in falling order, from the smaller Gram matrix."""
    if min(rows.shape) > _LARGE:
        return _largest(rows, count)
    gram = rows @ rows.t() if rows.shape[0] <= rows.shape[1] else rows.t() @ rows
    values: torch.Tensor = torch.linalg.eigvalsh(gram.double() if len(gram) <= _DOUBLE else gram)
    return values.double().flip(0).clamp(min=0)


def _of_mean(updates: Sequence[Factored], count: int) -> torch.Tensor:
    """Compute ``n |mean|^2`` by rank. The sum of the updates is ``L^T R``, with the rows of all stacked."""
    if len(updates) == 1:
        return updates[0].values.double().square()
    left = torch.cat([u.left * u.values[:, None].sqrt() for u in updates])
    right = torch.cat([u.right * u.values[:, None].sqrt() for u in updates])
    if len(left) > _LARGE:
        squares = _largest(left.t() @ right, count)
    else:
        # The singular values of L^T R are the roots of the eigenvalues of H R R^T H with H = (L L^T)^(1/2).
        values, vectors = torch.linalg.eigh((left @ left.t()).double())
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.t()
        eigenvalues = torch.linalg.eigvalsh(root @ (right @ right.t()).double() @ root)
        squares = eigenvalues.flip(0).clamp(min=0)
    return squares / len(updates)


def _largest(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """Return the largest squared singular values of a matrix, by subspace iteration."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        _, values, _ = torch.svd_lowrank(matrix, min(*matrix.shape, count + _MORE), _ROUNDS)
    return values.double().square()[:count]
