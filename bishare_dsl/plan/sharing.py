"""Count how many modules share each tensor of a plan, and how many a spec asks to share."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import NamedTuple

from bishare_dsl import spec as m
from bishare_dsl.models.site import Architecture
from bishare_dsl.plan.plan import Plan
from bishare_dsl.plan.select import Sites
from bishare_dsl.spec.evaluate import EvaluationError, Value


class Sharing(NamedTuple):
    """How much is shared: modules that share a tensor, and the fraction of trained numbers they share."""

    modules: int
    fraction: float = 0.0


def sharing(plan: Plan) -> Sharing:
    """Count what the modules of a plan share."""
    shared = [pool for pool in plan.pools if len(pool.members) > 1]
    members = {(pool.share, path) for pool in shared for path in pool.members}
    trained = {pool.tensor for pool in shared if plan.tensor[pool.tensor].trainable}
    numbers = sum(plan.tensor[name].size for name in trained)
    return Sharing(len(members), numbers / max(plan.trainable, 1))


def asked(spec: m.Spec, architecture: Architecture) -> Sharing:
    """Count the modules that the keys of a spec ask to share, whether or not their widths fit."""
    members: set[tuple[str, int]] = set()
    with suppress(EvaluationError):
        sites = Sites(spec, architecture)
        target = sites.site_sets.select(spec.target) if spec.target else frozenset()
        for share in spec.shares:
            where = share.where
            covered = target if where is None else sites.site_sets.select(where, (), target)
            for role in {"A", "B"} | {*share.keys}:
                values = {i: _value(sites, i, share.key(role)) for i in covered}
                counts = Counter(values.values())
                members |= {(share.name, i) for i, key in values.items() if counts[key] > 1}
    return Sharing(len(members))


def _value(sites: Sites, index: int, key: tuple[m.Expression, ...]) -> tuple[Value, ...]:
    scope = sites.site_sets.scopes[index]
    return tuple(
        scope.holds(part)
        if isinstance(part, m.Ref) and part.ref not in scope.values
        else scope.value(part, ())
        for part in key
    )
