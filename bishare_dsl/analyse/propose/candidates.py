"""The shares that are weighed: keys of the language, for one factor or both, and what each costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bishare_dsl.analyse.keys import Grouping, share_of
from bishare_dsl.plan import Pool
from bishare_dsl.spec import Share

Role = Literal["A", "B", "pair"]
"""Which factor is common to the modules of a pool; of a ``pair`` both, so that all add the same."""

_KEYS = (
    *("layer", "parent, layer", "layer // 2", "layer // 4", "kind, layer // 2"),
    *("kind, layer // 4", "kind", "parent", "model"),
)
_OF_MIXED_WIDTHS = ("layer", "layer // 2", "layer // 4", "parent, layer", "parent", "model")


@dataclass(frozen=True)
class Candidate:
    """One way to share.

    Attributes:
        name: of its share in a spec.
        text: who shares, as a spec says it: ``A per layer, in  B per module``.
        role: what is common.
        by_kind: whether no pool has modules of two kinds, so that each kind may have its own rank.
        of_groups: whether its key was made for the evidence.
    """

    name: str
    text: str
    role: Role
    by_kind: bool = False
    of_groups: bool = False

    def share(self) -> Share:
        """Return the share, of rank 1."""
        return share_of(f"share {self.name}  {self.text}  rank 1")


@dataclass(frozen=True)
class Unit:
    """A candidate, or a kind of module in it, whose rank grows by itself.

    Attributes:
        candidate: of which it is.
        kind: of its modules; None for all.
        pools: the paths of the modules that share.
        cost: parameters of a rank.
    """

    candidate: Candidate
    kind: str | None
    pools: tuple[tuple[str, ...], ...]
    cost: int


def candidates(groups: Sequence[tuple[str, str]]) -> Iterator[Candidate]:
    """Yield all that is weighed.

    Args:
        groups: names and texts of further keys, such as contiguous groups of layers.
    """
    yield Candidate("own", "per module", "A", by_kind=True)
    keys = [(key, _word(key), False) for key in _KEYS]
    keys += [(text, name, True) for name, text in groups]
    for key, name, made in keys:
        kinds = key.split(",")[0].strip() == "kind"
        before = "" if key == "model" else f"{key}, "
        own_in, own_out = (key, key) if kinds else (f"{before}in", f"{before}out")
        yield Candidate(f"a_{name}", f"A per {own_in}  B per module", "A", kinds, made)
        yield Candidate(f"b_{name}", f"A per module  B per {own_out}", "B", kinds, made)
        pair = key if kinds else f"{before}in, out"
        yield Candidate(f"pair_{name}", f"per {pair}", "pair", kinds, made)
        if made or key in _OF_MIXED_WIDTHS:
            yield Candidate(f"slices_{name}", f"per {key}  via SS", "pair", of_groups=made)


def units(candidate: Candidate, grouping: Grouping) -> list[Unit]:
    """Return the units of a candidate; the compiler tells pools and costs.

    Raises:
        BishareError: the share does not fit the model.
    """
    plan = grouping.plan(candidate.share())
    role = "B" if candidate.role == "B" else "A"
    if not candidate.by_kind:
        pools = tuple(pool.members for pool in plan.pools if pool.role == role)
        return [Unit(candidate, None, pools, plan.trainable)]
    kind_of = {site.path: site.kind for site in grouping.sites}
    found: dict[str, dict[str, Pool]] = {}
    for pool in plan.pools:  # None has modules of two kinds.
        found.setdefault(kind_of[pool.members[0]], {})[pool.tensor] = pool
    return [
        Unit(
            candidate,
            kind,
            tuple(pool.members for pool in pools.values() if pool.role == role),
            sum(plan.tensor[tensor].size for tensor in pools),
        )
        for kind in dict.fromkeys(kind_of.values())
        for pools in [found[kind]]
    ]


def _word(key: str) -> str:
    return key.replace(" // ", "s_of_").replace(", ", "_")
