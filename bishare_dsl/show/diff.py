"""Where two plans of one model differ: who shares with whom, by share, and at what settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bishare_dsl.plan import Plan, Pool, Term
from bishare_dsl.show.rows import Bounds, ShareRow, bounds, shares, trained_in_full, via


@dataclass(frozen=True)
class Regrouped:
    """The modules that share the tensors of one role with other modules than before.

    ``of`` counts all that the role has in either plan. ``before`` and ``after`` are how many modules use
    one tensor, the module itself among them; 0 where the share is not at the module.
    """

    share: str
    role: str
    of: int
    before: Bounds
    after: Bounds
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """A setting of a share that is another than before at ``modules`` modules; the values there."""

    share: str
    what: str
    modules: int
    before: str
    after: str


@dataclass(frozen=True)
class Pair:
    """A share before and after; None where it is in one plan only."""

    before: ShareRow | None
    after: ShareRow | None

    @property
    def name(self) -> str:
        names = dict.fromkeys(row.name for row in (self.before, self.after) if row)
        return " -> ".join(names)


@dataclass(frozen=True)
class Retrained:
    """Parameters of the base that one of the plans trains in full, or both do: how many each."""

    path: str
    before: int
    after: int


@dataclass(frozen=True)
class Difference:
    """All that differs. ``modules`` counts the modules that a change of any kind is about; ``whole`` is what
    they do not train alike in full."""

    modules: int
    shares: tuple[Pair, ...]
    regrouped: tuple[Regrouped, ...]
    settings: tuple[Setting, ...]
    whole: tuple[Retrained, ...]


def difference(before: Plan, after: Plan) -> Difference:
    """Compare two plans for one model, share by share.

    Shares are matched by name, and where each plan has one left, those two.
    """
    one = {row.name: row for row in shares(before)}
    two = {row.name: row for row in shares(after)}
    pairs = [Pair(row, two.get(name)) for name, row in one.items()]
    pairs += [Pair(None, row) for name, row in two.items() if name not in one]
    alone = [pair for pair in pairs if not (pair.before and pair.after)]
    if len(alone) == 2 and alone[0].before and alone[1].after:
        pairs = [pair for pair in pairs if pair not in alone]
        pairs.append(Pair(alone[0].before, alone[1].after))
    regrouped: list[Regrouped] = []
    settings: list[Setting] = []
    paths: set[str] = set()
    for pair in pairs:
        old, new = (_terms(plan, row) for plan, row in ((before, pair.before), (after, pair.after)))
        paths |= old.keys() ^ new.keys()
        for what in _SETTINGS:
            found = [p for p in old if p in new and _said(old[p])[what] != _said(new[p])[what]]
            if found:
                values = (
                    ", ".join(dict.fromkeys(_said(terms[path])[what] for path in found))
                    for terms in (old, new)
                )
                settings.append(Setting(pair.name, what, len(found), *values))
                paths.update(found)
        if pair.before and pair.after:
            regrouped += _regrouped(before, after, pair.before.name, pair.after.name, pair.name)
    paths.update(path for change in regrouped for path in change.sites)
    return Difference(
        len(paths),
        tuple(pairs),
        tuple(regrouped),
        tuple(settings),
        tuple(_retrained(before, after)),
    )


def _retrained(before: Plan, after: Plan) -> Iterator[Retrained]:
    old, new = ({row.path: row.parameters for row in trained_in_full(p)} for p in (before, after))
    for path in dict.fromkeys((*old, *new)):
        if old.get(path) != new.get(path):
            yield Retrained(path, old.get(path, 0), new.get(path, 0))


def _regrouped(
    before: Plan, after: Plan, first: str, second: str, name: str
) -> Iterator[Regrouped]:
    paths = [site.path for plan in (before, after) for site in plan.sites]
    one, two = _pools(before, first), _pools(after, second)
    for role in dict.fromkeys((*one, *two)):
        old, new = one.get(role, {}), two.get(role, {})
        alike: dict[tuple[str, str], bool] = {}
        found: list[tuple[str, int, int]] = []
        every = [path for path in dict.fromkeys(paths) if path in old or path in new]
        for path in every:
            was, now = old.get(path), new.get(path)
            if was is not None and now is not None:
                both = was.tensor, now.tensor
                if both not in alike:
                    alike[both] = set(was.members) == set(now.members)
                if alike[both]:
                    continue
            found.append((path, len(was.members) if was else 0, len(now.members) if now else 0))
        if found:
            yield Regrouped(
                name,
                role,
                len(every),
                bounds(was for _, was, _ in found),
                bounds(now for _, _, now in found),
                tuple(path for path, _, _ in found),
            )


def _pools(plan: Plan, share: str) -> dict[str, dict[str, Pool]]:
    """Find the pool of each site, by role."""
    found: dict[str, dict[str, Pool]] = {}
    for pool in plan.pools:
        if pool.share == share:
            found.setdefault(pool.role, {}).update(dict.fromkeys(pool.members, pool))
    return found


def _terms(plan: Plan, row: ShareRow | None) -> dict[str, Term]:
    return {term.site: term for term in plan.terms if row and term.share == row.name}


_SETTINGS = ("rank", "via", "scale", "dropout")


def _said(term: Term) -> dict[str, str]:
    return {
        "rank": str(term.rank),
        "via": via(term.transform, term.options),
        "scale": f"{term.scale:g}",
        "dropout": f"{term.dropout:g}",
    }
