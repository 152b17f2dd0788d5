"""Remedies for pools whose modules cannot share, and for selections of nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from bishare_dsl import spec as m
from bishare_dsl.advice.question import Question, Remedy
from bishare_dsl.diagnostics import Loc
from bishare_dsl.language.text import expression_text, reference_text, share_text
from bishare_dsl.plan.facts import (
    NoPool,
    NothingSelected,
    OtherReference,
    ShareWithoutRole,
    UnequalPool,
    WithoutValue,
)
from bishare_dsl.spec.evaluate import EvaluationError
from bishare_dsl.spec.walk import names_read, parts_of
from bishare_dsl.transforms import PLAIN, transform_kind
from bishare_dsl.transforms.registry import BUILT_IN


def unequal_pool(fact: UnequalPool, question: Question) -> Iterator[Remedy]:
    """Yield keys that tell the modules apart, a share for the rest, or a transform that fits widths."""
    if question.spec is None:
        return
    share = question.spec.shares[fact.share]
    if fact.differs == "rank":
        yield from _by_rank(share, fact, question)
        return
    if not _about_widths(share, fact, question):
        return
    if share.via is None:
        loc: Loc = ("shares", fact.share, "rank")
        for name in BUILT_IN:  # The plainest come first.
            kind = transform_kind(name)
            if name != PLAIN and (*kind.pooled, *kind.owned) == ("A", "B"):
                fits = f"write `via {name}` to share across widths"
                help = f"{fits}, or add `in` or `out` to the key to share among equal widths"
                yield question.rewritten(loc, f"{{}} via {name}", help)
    finer = ["in", "out", "in, out", "kind", "parent"]
    yield from _with_key(share, fact, [fact.role], finer, question)
    if share.via is None:
        yield Remedy("a tensor is shared by modules of equal widths")


def _about_widths(share: m.Share, fact: UnequalPool, question: Question) -> bool:
    """Return whether a finer key or a transform can be meant: the key does not select, and varies."""
    key = share.key(fact.role)
    if any(isinstance(part, m.Compare) and part.op == "==" for part in key) or fact.constant:
        return False
    names = {name for part in key for name, _ in names_read(part, ())}
    sites = question.sites
    if sites is not None and names & {*sites.kinds, *sites.parts}:
        return False
    return not names & {"in", "out"}


def _with_key(
    share: m.Share,
    fact: UnequalPool,
    roles: Iterable[str],
    parts: Iterable[str],
    question: Question,
) -> Iterator[Remedy]:
    """Yield remedies that add a part to the key of each of some roles."""
    for part in parts:
        shown: list[str] = []
        texts: dict[Loc, str] = {}
        for role in roles:
            text = ", ".join([*map(expression_text, share.key(role)), part])
            if role in share.keys:
                shown.append(f"{role} per {text}")
                texts["shares", fact.share, "keys", role] = text
            else:
                shown.append(f"per {text}")
                texts["shares", fact.share, "per"] = text
        yield question.rewrites(texts, f"write `{' '.join(shown)}`")


def _by_rank(share: m.Share, fact: UnequalPool, question: Question) -> Iterator[Remedy]:
    """Yield remedies for ranks that vary: a key that tells them apart, or a share for the rest."""
    rank = share.rank
    operands: list[m.Expression] = [one.condition for _, one in parts_of(rank, m.If)]
    for _, cases in parts_of(rank, m.Cases):
        operands += [m.Member(value=cases.subject, among=arm.values) for arm in cases.arms]
    operands += [part for _, part in parts_of(rank, m.Ref)]
    binary = [part for _, part in parts_of(rank, m.Binary)]
    operands += reversed(binary)
    parts = list(dict.fromkeys(map(expression_text, operands)))
    yield from _with_key(share, fact, [fact.role], parts, question)
    if len(share.keys) > 1:
        yield from _with_key(share, fact, share.keys, parts, question)
    yield from _second_share(share, fact, question)


def _second_share(share: m.Share, fact: UnequalPool, question: Question) -> Iterator[Remedy]:
    """Yield the remedy that gives the difference of two ranks a share of its own."""
    spec = question.spec
    if spec is None or share.where is not None or spec.settings(share).alpha is not None:
        return
    match share.rank:
        case m.If(then=int(then), condition=condition, otherwise=int(otherwise)):
            larger = condition if then > otherwise else m.Not(negated=condition)
            more = share.model_copy(
                update={
                    "name": f"{share.name}_more",
                    "rank": abs(then - otherwise),
                    "where": m.Selection(include=(larger,)),
                }
            )
            low = min(then, otherwise)
            text = share_text(more)
            loc: Loc = ("shares", fact.share)
            texts: dict[Loc, str] = {loc: f"{text}\n{{}}", (*loc, "rank"): str(low)}
            yield question.rewrites(texts, f"`rank {low}` here, and `{text}`")


def other_reference(fact: OtherReference, question: Question) -> Iterator[Remedy]:
    """Refer to the tensor that has a key."""
    if question.spec is None:
        return
    _, share, _, role = question.loc
    reference = question.spec.shares[int(share)].references[str(role)]
    other = reference.model_copy(update={"share": fact.share, "role": fact.role})
    text = reference_text(str(role), other)
    yield question.rewritten(question.loc, text, f"write `{text}`")


def share_without_role(fact: ShareWithoutRole, question: Question) -> Iterator[Remedy]:
    """Name a tensor of the share."""
    if question.spec is None:
        return
    _, share, _, role = question.loc
    reference = question.spec.shares[int(share)].references[str(role)]
    for owner_role in ("A", "B"):
        other = reference.model_copy(update={"share": fact.share, "role": owner_role})
        text = reference_text(str(role), other)
        yield question.rewritten(question.loc, text, f"write `{text}`")


def no_pool(fact: NoPool, question: Question) -> Iterator[Remedy]:
    """Select the modules that find a tensor."""
    if question.spec is None:
        return
    share = question.spec.shares[fact.share]
    if fact.fitting is not None:
        first, last = fact.fitting
        condition = f"layer == {first}" if first == last else f"layer in {first}..{last}"
        if share.where is None:
            loc: Loc = ("shares", fact.share, "rank")
            yield question.rewritten(loc, f"{{}} where {condition}", f"write `where {condition}`")
        else:
            loc = ("shares", fact.share, "where")
            for whole in ("{}", "({})"):
                text = f"{whole} and {condition}"
                yield question.rewritten(loc, text, f"write `and {condition}`")
    yield Remedy("`where` selects the modules that find a tensor")


def nothing_selected(fact: NothingSelected, question: Question) -> Iterator[Remedy]:
    """Say why a selection selects nothing."""
    selection = fact.selection
    if fact.outside:
        yield Remedy("all that `where` names is outside of `target`: name it there too")
    if selection.exclude:
        yield Remedy("`except` takes away all that stands before it: leave it out")
    for part in selection.include:
        if isinstance(part, m.And):
            yield from _never_both(part, question)
        if isinstance(part, m.Compare):
            yield from _never_compared(part, question)
    yield Remedy("no module fits this condition")


def _never_both(part: m.And, question: Question) -> Iterator[Remedy]:
    """Say what `and` takes, and write a comma in its place."""
    names = [inner.ref for inner in part.all_of if isinstance(inner, m.Ref)]
    if len(names) > 1:
        text = ", ".join(names)
        yield Remedy(f"no module is both; a comma takes one and the other: `{text}`")
    yield Remedy("`and` takes what fits both of its sides, and `or` what fits one of them")


def _never_compared(part: m.Compare, question: Question) -> Iterator[Remedy]:
    """Say which values the left side of a comparison has at the targets."""
    sites = question.sites
    if sites is None:
        return
    if part.op == "!=":
        same = expression_text(part).replace("!=", "==")
        yield Remedy(f"`{same}` holds for all targets")
    values: list[float] = []
    with suppress(EvaluationError):
        values = [sites.scopes[site.path].number(part.left) for site in sites.of(sites.target)]
    if values:
        ends = f"{min(values):g} to {max(values):g}"
        yield Remedy(f"`{expression_text(part.left)}` is from {ends}")


def without_value(fact: WithoutValue, question: Question) -> Iterator[Remedy]:
    """Leave out the modules at which a condition has no value."""
    lacks = "in no layer" if fact.attribute == "layer" else "of no expert"
    yield Remedy(f"`{fact.path}` is {lacks}: `{fact.attribute} != none` leaves it out")
