"""Compare two plans for one model: which modules share, and with what settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bishare_dsl.plan import Plan
from bishare_dsl.plan.in_full import TRAIN
from bishare_dsl.show.rows import ShareRow, bounds, shares, span, trained_in_full, via


@dataclass(frozen=True)
class Change:
    """Something that differs between two plans.

    Attributes:
        share: the share, or ``train`` for parameters trained in full.
        what: a setting such as ``rank``; ``modules per A`` for modules that use a tensor of a role with other
            modules than before, where 0 modules means that the share does not cover the module; or the path
            of parameters trained in full.
        before: the values before, as text, and ``after`` those after.
        sites: the modules that differ.
    """

    share: str
    what: str
    before: str
    after: str
    sites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A share before and after, or None if only one plan has it."""

    before: ShareRow | None
    after: ShareRow | None

    @property
    def name(self) -> str:
        names = dict.fromkeys(row.name for row in (self.before, self.after) if row)
        return " -> ".join(names)


@dataclass(frozen=True)
class Difference:
    """All differences between two plans; ``modules`` counts the modules that differ in any way."""

    modules: int
    shares: tuple[Pair, ...]
    changes: tuple[Change, ...]


def difference(before: Plan, after: Plan) -> Difference:
    """Compare two plans for one model, share by share.

    Shares are matched by name. If then one is left in each plan, these two are matched.
    """
    rows_before = {row.name: row for row in shares(before)}
    rows_after = {row.name: row for row in shares(after)}
    pairs = [Pair(row, rows_after.get(name)) for name, row in rows_before.items()]
    pairs += [Pair(None, row) for name, row in rows_after.items() if name not in rows_before]
    alone = [pair for pair in pairs if not (pair.before and pair.after)]
    if len(alone) == 2 and alone[0].before and alone[1].after:
        pairs = [pair for pair in pairs if pair not in alone]
        pairs.append(Pair(alone[0].before, alone[1].after))
    changes = [change for pair in pairs for change in _changes(before, after, pair)]
    covered = (
        {(term.site, name_of.get(term.share)) for term in plan.terms}
        for plan, name_of in (
            (before, {pair.before.name: pair.name for pair in pairs if pair.before}),
            (after, {pair.after.name: pair.name for pair in pairs if pair.after}),
        )
    )
    differing = {site for site, _ in set.symmetric_difference(*covered)}
    differing.update(site for change in changes for site in change.sites)
    return Difference(len(differing), tuple(pairs), (*changes, *_retrained(before, after)))


def _changes(before: Plan, after: Plan, pair: Pair) -> Iterator[Change]:
    """Compare a share that both plans have, module by module."""
    if not (pair.before and pair.after):
        return
    paths = dict.fromkeys(site.path for plan in (before, after) for site in plan.sites)
    groups: dict[frozenset[str], frozenset[str]] = {}  # Equal groups are one object here.
    groups_before, groups_after = (
        _groups(plan, row.name, groups)
        for plan, row in ((before, pair.before), (after, pair.after))
    )
    for role in dict.fromkeys((*groups_before, *groups_after)):
        old, new = groups_before.get(role, {}), groups_after.get(role, {})
        sites = tuple(path for path in paths if old.get(path) is not new.get(path))
        if sites:
            was, now = (span(bounds(len(of.get(path, ())) for path in sites)) for of in (old, new))
            yield Change(pair.name, f"modules per {role}", was, now, sites)
    first, second = _settings(before, pair.before.name), _settings(after, pair.after.name)
    for what in ("rank", "via", "scale", "dropout"):
        both = (path for path in first if path in second)
        sites = tuple(path for path in both if first[path][what] != second[path][what])
        if sites:
            was, now = (", ".join({of[path][what]: 0 for path in sites}) for of in (first, second))
            yield Change(pair.name, what, was, now, sites)


def _groups(
    plan: Plan, share: str, groups: dict[frozenset[str], frozenset[str]]
) -> dict[str, dict[str, frozenset[str]]]:
    """Map each role of a share to the modules that use one tensor, for each of these modules."""
    of_roles: dict[str, dict[str, frozenset[str]]] = {}
    for pool in plan.pools:
        if pool.share == share:
            members = frozenset(pool.members)
            members = groups.setdefault(members, members)
            of_roles.setdefault(pool.role, {}).update(dict.fromkeys(members, members))
    return of_roles


def _settings(plan: Plan, share: str) -> dict[str, dict[str, str]]:
    """Return the settings of a share at each module."""
    return {
        term.site: {
            "rank": str(term.rank),
            "via": via(term.transform, term.options),
            "scale": f"{term.scale:g}",
            "dropout": f"{term.dropout:g}",
        }
        for term in plan.terms
        if term.share == share
    }


def _retrained(before: Plan, after: Plan) -> Iterator[Change]:
    """Compare how many parameters of the base the plans train in full."""
    old, new = ({row.path: row.parameters for row in trained_in_full(p)} for p in (before, after))
    for path in dict.fromkeys((*old, *new)):
        if old.get(path) != new.get(path):
            yield Change(TRAIN, path, f"{old.get(path, 0):,}", f"{new.get(path, 0):,}")
