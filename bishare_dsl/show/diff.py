"""Compare two plans for one model: which modules share, and with what settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bishare_dsl.plan import Plan, Pool, Term
from bishare_dsl.show.rows import Bounds, ShareRow, bounds, shares, trained_in_full, via


@dataclass(frozen=True)
class Regrouped:
    """Modules that share the tensors of one role with other modules than before.

    ``of`` counts the modules of the role in either plan. ``before`` and ``after`` count the modules that use
    one tensor, including the module itself, or are 0 if the share does not cover the module.
    """

    share: str
    role: str
    of: int
    before: Bounds
    after: Bounds
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """A setting of a share that changed at ``modules`` modules, with its values before and after."""

    share: str
    what: str
    modules: int
    before: str
    after: str


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
class Retrained:
    """How many parameters of the base each plan trains in full."""

    path: str
    before: int
    after: int


@dataclass(frozen=True)
class Difference:
    """All differences between two plans.

    ``modules`` counts the modules that differ in any way, and ``whole`` lists parameters trained in full that
    differ.
    """

    modules: int
    shares: tuple[Pair, ...]
    regrouped: tuple[Regrouped, ...]
    settings: tuple[Setting, ...]
    whole: tuple[Retrained, ...]


def difference(before: Plan, after: Plan) -> Difference:
    """Compare two plans for one model, share by share.

    Shares are matched by name. If then one is left in each plan, these two are matched.
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
            changed = [
                p for p in old if p in new and _settings(old[p])[what] != _settings(new[p])[what]
            ]
            if changed:
                values = (
                    ", ".join(dict.fromkeys(_settings(terms[path])[what] for path in changed))
                    for terms in (old, new)
                )
                settings.append(Setting(pair.name, what, len(changed), *values))
                paths.update(changed)
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
        same_members: dict[tuple[str, str], bool] = {}
        regrouped: list[tuple[str, int, int]] = []
        every = [path for path in dict.fromkeys(paths) if path in old or path in new]
        for path in every:
            was, now = old.get(path), new.get(path)
            if was is not None and now is not None:
                both = was.tensor, now.tensor
                if both not in same_members:
                    same_members[both] = set(was.members) == set(now.members)
                if same_members[both]:
                    continue
            regrouped.append((path, len(was.members) if was else 0, len(now.members) if now else 0))
        if regrouped:
            yield Regrouped(
                name,
                role,
                len(every),
                bounds(was for _, was, _ in regrouped),
                bounds(now for _, _, now in regrouped),
                tuple(path for path, _, _ in regrouped),
            )


def _pools(plan: Plan, share: str) -> dict[str, dict[str, Pool]]:
    """Map each role to the pool of each site."""
    pools: dict[str, dict[str, Pool]] = {}
    for pool in plan.pools:
        if pool.share == share:
            pools.setdefault(pool.role, {}).update(dict.fromkeys(pool.members, pool))
    return pools


def _terms(plan: Plan, row: ShareRow | None) -> dict[str, Term]:
    return {term.site: term for term in plan.terms if row and term.share == row.name}


_SETTINGS = ("rank", "via", "scale", "dropout")


def _settings(term: Term) -> dict[str, str]:
    return {
        "rank": str(term.rank),
        "via": via(term.transform, term.options),
        "scale": f"{term.scale:g}",
        "dropout": f"{term.dropout:g}",
    }
