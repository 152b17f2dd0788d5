"""The shares that are weighed: keys of the language, for one factor or both, and what each costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bishare_dsl.analyse.keys import Grouping, share_of
from bishare_dsl.models.site import Site
from bishare_dsl.plan import Plan, Pool
from bishare_dsl.spec import Share
from bishare_dsl.transforms.registry import BUILT_IN, transform_kind
from bishare_dsl.transforms.transform import Width

Role = Literal["A", "B", "pair", "grid", "kernels"]
"""Which factor is common to the modules of a pool; of a ``pair`` both, so that all add the same; of a
``grid`` both under keys of their own; of ``kernels`` a small pair, which each module stretches."""

_KEYS = (
    *("layer", "parent, layer", "layer // 2", "layer // 4", "kind, layer // 2"),
    *("kind, layer // 4", "kind", "parent", "model"),
)
_OF_MIXED_WIDTHS = ("layer", "layer // 2", "layer // 4", "parent, layer", "parent", "model")
_STRETCHED = ("layer", "kind", "model")
"""Keys of what a module's own kernels fit to it."""
_CROSSED = (
    *(("layer", "kind"), ("layer", "kind, layer // 4"), ("parent, layer", "kind")),
    *(("layer", "model"), ("kind, layer // 2", "kind"), ("kind", "model")),
)
"""Pairs of keys, of which either may be that of A."""


@dataclass(frozen=True)
class Candidate:
    """One way to share.

    Attributes:
        name: of its share in a spec.
        text: who shares, as a spec says it: ``A per layer, in  B per module``.
        role: what is common.
        by_kind: whether no pool has modules of two kinds, so that each kind may have its own rank.
        of_groups: whether its key was made for the evidence.
        via: the transform, or nothing.
        alone: whether each module keeps what it would keep by itself, whatever is common.
        size: columns of the pair that kernels stretch.
        many: whether the rank is the kernels', and the pair is of rank 1.
    """

    name: str
    text: str
    role: Role
    by_kind: bool = False
    of_groups: bool = False
    via: str = ""
    alone: bool = False
    size: int = 0
    many: bool = False

    def share(self) -> Share:
        """Return the share, of rank 1."""
        return share_of(f"share {self.name}  {self.text}  rank 1")


@dataclass(frozen=True)
class Unit:
    """A candidate, or a kind of module in it, whose rank grows by itself.

    Attributes:
        candidate: of which it is.
        kind: of its modules; None for all.
        pools: the paths of the modules that share; of a grid, those whose A or B hang together.
        cost: parameters of a rank.
        base: parameters beside those of the ranks. Where there are any, a rank more changes all others.
        places: of a grid, which A and which B each module of a pool has.
    """

    candidate: Candidate
    kind: str | None
    pools: tuple[tuple[str, ...], ...]
    cost: int
    base: int = 0
    places: tuple[tuple[tuple[int, int], ...], ...] = ()

    def price(self, rank: int) -> int:
        """Count the parameters at a rank; there are none at 0."""
        return self.base + self.cost * rank if rank else 0


def candidates(
    groups: Sequence[tuple[str, str]], sites: Sequence[Site] = ()
) -> Iterator[Candidate]:
    """Yield all that is weighed.

    Args:
        groups: names and texts of further keys, such as contiguous groups of layers.
        sites: the modules, whose widths say what transforms are of use.
    """
    yield Candidate("own", "per module", "A", by_kind=True)
    keys = [(key, _word(key), False) for key in _KEYS]
    keys += [(text, name, True) for name, text in groups]
    for key, name, made in keys:
        kinds = _of_kinds(key)
        own_in, own_out = _with(key, "in"), _with(key, "out")
        yield Candidate(f"a_{name}", f"A per {own_in}  B per module", "A", kinds, made)
        yield Candidate(f"b_{name}", f"A per module  B per {own_out}", "B", kinds, made)
        yield Candidate(f"pair_{name}", f"per {_with(key, 'in, out')}", "pair", kinds, made)
    for one, other in (both for pair in _CROSSED for both in (pair, pair[::-1])):
        text = f"A per {_with(one, 'in')}  B per {_with(other, 'out')}"
        kinds = _of_kinds(one) and _of_kinds(other)
        yield Candidate(f"a_{_word(one)}_b_{_word(other)}", text, "grid", kinds)
    yield from _via(keys, [Width(site.d_in, site.d_out) for site in sites])


def _via(keys: Sequence[tuple[str, str, bool]], widths: Sequence[Width]) -> Iterator[Candidate]:
    """Yield what transforms offer for these widths."""
    for transform in BUILT_IN if widths else ():
        for number, offer in enumerate(transform_kind(transform).offers(widths), 1):
            options = f"({offer.options})" if offer.options else ""
            for key, name, made in keys:
                if offer.keeps == "pair":
                    weighed = made or key in _OF_MIXED_WIDTHS
                else:  # Where a module keeps what it does alone, the coarsest key costs least.
                    weighed = key in (_STRETCHED if offer.keeps == "kernels" else _STRETCHED[-1:])
                if weighed:
                    yield Candidate(
                        f"{transform.lower()}{number if number > 1 else ''}_{name}",
                        f"per {key}  via {transform}{options}",
                        "A" if offer.keeps == "own" else offer.keeps,
                        of_groups=made,
                        via=transform,
                        alone=offer.keeps == "own",
                        size=offer.size,
                        many=offer.many,
                    )


def units(candidate: Candidate, grouping: Grouping) -> list[Unit]:
    """Return the units of a candidate; the compiler tells pools and costs.

    Raises:
        BishareError: the share does not fit the model.
    """
    plan = grouping.plan(candidate.share())
    if not candidate.by_kind:
        cost, base = plan.trainable, 0
        # Of kernels and pair one has the rank, and the other is there anyway.
        if candidate.role == "kernels":
            common = sum(plan.tensor[pool.tensor].size for pool in plan.pools)
            cost, base = (cost - common, common) if candidate.many else (common, cost - common)
        return [_unit(candidate, None, plan.pools, plan, cost, base)]
    kind_of = {site.path: site.kind for site in grouping.sites}
    found: dict[str, list[Pool]] = {}
    for pool in plan.pools:  # None has modules of two kinds.
        found.setdefault(kind_of[pool.members[0]], []).append(pool)
    return [
        _unit(candidate, kind, pools, plan, sum(plan.tensor[p.tensor].size for p in pools), 0)
        for kind in dict.fromkeys(kind_of.values())
        for pools in [found[kind]]
    ]


def _unit(
    candidate: Candidate,
    kind: str | None,
    pools: Sequence[Pool],
    plan: Plan,
    cost: int,
    base: int,
) -> Unit:
    if candidate.alone:
        of_each = tuple((term.site,) for term in plan.terms)
        return Unit(candidate, kind, of_each, cost, base)
    if candidate.role == "grid":
        return _grid(Unit(candidate, kind, (), cost, base), pools)
    role = "B" if candidate.role == "B" else "A"
    return Unit(
        candidate, kind, tuple(pool.members for pool in pools if pool.role == role), cost, base
    )


def _grid(unit: Unit, pools: Sequence[Pool]) -> Unit:
    """Return the unit with its modules by what hangs together through a common A or B."""
    of = {
        role: {
            path: place
            for place, pool in enumerate(p for p in pools if p.role == role)
            for path in pool.members
        }
        for role in "AB"
    }
    together: list[dict[str, tuple[int, int]]] = []
    for path, a in of["A"].items():
        here, joined = (a, of["B"][path]), {}
        for other in [
            t for t in together if any(p[0] == here[0] or p[1] == here[1] for p in t.values())
        ]:
            joined.update(other)
            together.remove(other)
        together.append({**joined, path: here})
    return replace(
        unit,
        pools=tuple(map(tuple, together)),
        places=tuple(tuple(one.values()) for one in together),
    )


def _of_kinds(key: str) -> bool:
    return key.split(",")[0].strip() == "kind"


def _with(key: str, sides: str) -> str:
    """Return a key under which widths are equal."""
    if _of_kinds(key):
        return key
    return sides if key == "model" else f"{key}, {sides}"


def _word(key: str) -> str:
    return key.replace(" // ", "s_of_").replace(", ", "_")
