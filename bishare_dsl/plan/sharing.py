"""Measure how much the modules of a plan share, and how much a spec asks them to share."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import NamedTuple

from bishare_dsl import spec as m
from bishare_dsl.models.site import Architecture
from bishare_dsl.plan.plan import Plan
from bishare_dsl.plan.select import Sites
from bishare_dsl.plan.vocabulary import key_value
from bishare_dsl.spec.evaluate import EvaluationError, Value
from bishare_dsl.transforms import GAIN_OUT, GAIN_RANK, PLAIN
from bishare_dsl.transforms.described import roles_of


class Sharing(NamedTuple):
    """How much is shared: the fraction of modules that share, and how many use a tensor on average."""

    fraction: float
    users: float = 0.0


def sharing(plan: Plan) -> Sharing:
    """Measure what the modules of a plan share."""
    count = len({(pool.share, path) for pool in plan.pools for path in pool.members}) or 1
    pools = [pool for pool in plan.pools if len(pool.members) > 1]
    members = {(pool.share, path) for pool in pools for path in pool.members}
    users = sum(len(pool.members) for pool in plan.pools) / max(len(plan.pools), 1)
    return Sharing(len(members) / count, users)


def keeps(plan: Plan, spec: m.Spec, before: Plan | None, wanted: Sharing) -> bool:
    """Return whether a plan still does what a spec, whose own plan may be ``before``, asks for.

    No smaller part of the modules shares, and no share has other tensors. If there is a plan to compare
    with, the modules, ranks, scales and trained tensors are the same, and no more numbers are trained.
    """
    if not all(now >= then for now, then in zip(sharing(plan), wanted, strict=True)):
        return False
    if before is not None:
        return _acts(plan) == _acts(before) and plan.trainable <= before.trainable
    # A transform that is not known has no roles.
    roles = {s.name: roles_of(s.via.transform if s.via else PLAIN) for s in spec.shares}
    terms = [term for term in plan.terms if roles.get(term.share)]
    return all({*term.tensors} - {GAIN_RANK, GAIN_OUT} <= roles[term.share] for term in terms)


def _acts(plan: Plan) -> tuple[object, ...]:
    terms = {
        (term.share, term.site): (
            (term.rank, term.scale, term.dropout),
            {role for role, name in term.tensors.items() if plan.tensor[name].trainable},
        )
        for term in plan.terms
    }
    return terms, plan.trained


def asked(spec: m.Spec, architecture: Architecture) -> Sharing:
    """Measure what the keys of a spec ask to share, whether or not widths fit."""
    members: set[tuple[str, int]] = set()
    count = 0
    with suppress(EvaluationError, KeyError):
        sites = Sites(spec, architecture)
        target = sites.site_sets.select(spec.target) if spec.target else frozenset()
        for share in spec.shares:
            covered = sites.site_sets.select(share.where, (), target) if share.where else target
            count += len(covered)
            for role in {"A", "B"} | {*share.keys}:
                values = {i: _value(sites, i, share.key(role)) for i in covered}
                counts = Counter(values.values())
                members |= {(share.name, i) for i, key in values.items() if counts[key] > 1}
    return Sharing(len(members) / max(count, 1))


def _value(sites: Sites, index: int, key: tuple[m.Expression, ...]) -> tuple[Value, ...]:
    scope = sites.site_sets.scopes[index]
    names = {part.ref for part in key if isinstance(part, m.Ref)}
    if not names <= {*scope.values, *scope.lets, *sites.kinds}:
        raise KeyError(names)  # An unknown key asks for nothing.
    return tuple(key_value(scope, part) for part in key)
