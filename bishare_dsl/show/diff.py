"""Where two plans of one model differ: who shares with whom, by share, and at what settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from bishare_dsl.plan import Plan, Pool
from bishare_dsl.show.rows import Bounds, ShareRow, bounds, shares


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
    """A setting of a share that is another than before."""

    share: str
    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Difference:
    """All that differs. ``modules`` counts the modules that a change of any kind is about."""

    modules: int
    removed: tuple[ShareRow, ...]
    added: tuple[ShareRow, ...]
    regrouped: tuple[Regrouped, ...]
    settings: tuple[Setting, ...]

    @property
    def same(self) -> bool:
        return not (self.removed or self.added or self.regrouped or self.settings)


def difference(before: Plan, after: Plan) -> Difference:
    """Compare two plans for one model, share by share.

    Shares are matched by name, and where each plan has one left, those two.
    """
    one = {row.name: row for row in shares(before)}
    two = {row.name: row for row in shares(after)}
    removed = [row for name, row in one.items() if name not in two]
    added = [row for name, row in two.items() if name not in one]
    pairs = [(row, two[name]) for name, row in one.items() if name in two]
    if len(removed) == len(added) == 1:
        pairs.append((removed.pop(), added.pop()))
    regrouped = tuple(_regrouped(before, after, pairs))
    settings = tuple(setting for pair in pairs for setting in _settings(*pair))
    changed = {row.name for row in (*removed, *added)}
    changed |= {row.name for pair in pairs if any(_settings(*pair)) for row in pair}
    paths = {term.site for plan in (before, after) for term in plan.terms if term.share in changed}
    paths.update(path for change in regrouped for path in change.sites)
    return Difference(len(paths), tuple(removed), tuple(added), regrouped, settings)


def _regrouped(
    before: Plan, after: Plan, pairs: list[tuple[ShareRow, ShareRow]]
) -> Iterator[Regrouped]:
    paths = [site.path for plan in (before, after) for site in plan.sites]
    one, two = _pools(before), _pools(after)
    roles = dict.fromkeys(role for _, role in (*one, *two))
    for pair, role in product(pairs, roles):
        old, new = one.get((pair[0].name, role), {}), two.get((pair[1].name, role), {})
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
                _name(*pair),
                role,
                len(every),
                bounds(was for _, was, _ in found),
                bounds(now for _, _, now in found),
                tuple(path for path, _, _ in found),
            )


def _pools(plan: Plan) -> dict[tuple[str, str], dict[str, Pool]]:
    """The pool of each site, by share and role."""
    found: dict[tuple[str, str], dict[str, Pool]] = {}
    for pool in plan.pools:
        found.setdefault((pool.share, pool.role), {}).update(dict.fromkeys(pool.members, pool))
    return found


def _settings(before: ShareRow, after: ShareRow) -> Iterator[Setting]:
    one, two = _said(before), _said(after)
    for what in one:
        if one[what] != two[what]:
            yield Setting(_name(before, after), what, one[what], two[what])


def _name(before: ShareRow, after: ShareRow) -> str:
    return before.name if before.name == after.name else f"{before.name} -> {after.name}"


def _said(row: ShareRow) -> dict[str, str]:
    return {
        "modules": f"{row.modules:,}",
        "rank": ", ".join(map(str, row.ranks)),
        "via": row.via,
        "scale": ", ".join(f"{scale:g}" for scale in row.scales),
        "dropout": f"{row.dropout:g}",
        "trainable": f"{row.trainable:,}",
    }
