"""Check a spec without a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import Loc, Problem, SpecError
from bishare_dsl.diagnostics.codes import spec as codes
from bishare_dsl.diagnostics.codes.language import USED_BEFORE
from bishare_dsl.plan.settings import SpecSettings, check_names
from bishare_dsl.spec import meant
from bishare_dsl.spec.evaluate import EvaluationError, Scope, Value
from bishare_dsl.spec.facts import Difference, Fault, NotWhole, ReversedRange, UnknownName
from bishare_dsl.spec.walk import mentions, names_read, reads_param, refs
from bishare_dsl.transforms import PLAIN, transform_kind
from bishare_dsl.transforms.gate import ROUTER


def check_spec(spec: m.Spec) -> list[Problem]:
    """Find every problem of a spec that does not depend on a model."""
    spec_settings = SpecSettings(spec)
    check(spec_settings)
    return spec_settings.problems


def check(spec_settings: SpecSettings) -> None:
    """Find every problem of a spec that does not depend on a model."""
    spec = spec_settings.spec
    named = chain(_names(spec), _unused(spec_settings), _ranges(spec_settings), _keys(spec))
    named = chain(named, _cases(spec_settings))
    meanings = chain(meant.lists(spec), meant.layers(spec, spec_settings.mentions))
    spec_settings.add(chain(named, meanings, _params(spec, spec_settings.params)))
    for index, share in enumerate(spec.shares):
        spec_settings.add(_share(spec_settings, index, share))


def rank_of(rank: m.Expression, scope: Scope, loc: Loc) -> int:
    """Return the value of a rank.

    Raises:
        EvaluationError: the expression has no value, or a value that is not a rank (BS211).
    """
    while isinstance(rank, m.Cases):
        rank, loc = scope.result(rank, loc)
    value = scope.number(rank, loc)
    if value != int(value) or value < 0:
        what = f"a rank{scope.where}"
        why = "it is a whole number, 0 or more"
        computed = value >= 1 and not isinstance(rank, int | float)
        fact = NotWhole(rank) if computed else None
        raise EvaluationError(codes.BAD_NUMBER(what=what, value=value, why=why, loc=loc, fact=fact))
    return int(value)


def _params(spec: m.Spec, values: Mapping[str, Value]) -> Iterator[Problem]:
    """Find undeclared names in params."""
    for i, param in enumerate(spec.params):
        above = {other.name: values[other.name] for other in spec.params[:i]}
        try:
            check_names(Scope(above), param.value, ("params", i, "value"))
        except EvaluationError as error:
            yield error.problem


def _declared(spec: m.Spec) -> Iterator[tuple[str, int, str]]:
    """Yield the params and lets of a spec: ``("param", index, name)`` and ``("let", ...)``."""
    yield from (("param", i, param.name) for i, param in enumerate(spec.params))
    yield from (("let", i, let.name) for i, let in enumerate(spec.lets))


def _names(spec: m.Spec) -> Iterator[Problem]:
    seen: dict[str, Loc] = {}
    for what, i, name in _declared(spec):
        loc: Loc = (f"{what}s", i, "name")
        if name in seen:
            yield codes.TWICE(what=what, name=name, loc=loc, also=seen[name])
        seen.setdefault(name, loc)
        if name in (*m.ATTRIBUTES, "model", "rank", "alpha", "none"):
            yield codes.RESERVED(name=name, why="it already means something", loc=loc)
    below = [let.name for let in spec.lets]
    # The parser checked the order of a text; a spec built in Python is unchecked.
    for i, let in enumerate(spec.lets):
        for place, ref in refs(let.selection, ("lets", i, "selection")):
            if ref.ref in below[i:]:
                yield USED_BEFORE(name=ref.ref, keyword="let", loc=place)
    shares: dict[str, Loc] = {}
    for i, share in enumerate(spec.shares):
        share_loc: Loc = ("shares", i, "name")
        if (share.name == m.MAGNITUDE or share.is_magnitude) and share != _statement(share):
            said = "the statement `magnitude per module` makes the share of this name"
            yield codes.RESERVED(name=m.MAGNITUDE, why=said, loc=share_loc)
        if (name := share.name) in shares:
            yield codes.TWICE(what="share", name=name, loc=share_loc, also=shares[name])
        shares.setdefault(name, share_loc)
        why = None
        if not re.fullmatch(r"[^\W\d]\w*", share.name):
            why = "tensors are named after shares, so that a share is named by one word"
        elif "__" in share.name or share.name.endswith("_"):
            # In a module, `a.b.A` is the attribute `a__b__A`, so two names must not become equal.
            why = "`__` stands for a dot in the names of tensors"
        if why is not None:
            yield codes.RESERVED(name=share.name, why=why, loc=share_loc)


def _statement(share: m.Share) -> m.Share:
    """Return the `magnitude` statement that equals a share."""
    plain = isinstance(share.via, m.Via) and share.via.options == {"plain": 1}
    fields = {name: getattr(share, name) for name in ("per", "where", "init", "nonzero_start")}
    return m.magnitude(plain=plain, **fields)


def _unused(spec_settings: SpecSettings) -> Iterator[Problem]:
    spec = spec_settings.spec
    params = [param.name for param in spec.params]
    used = {
        mention.part.ref
        for mention in spec_settings.mentions
        if isinstance(mention.part, m.Ref)
        and (mention.part.ref not in params or reads_param(mention, params))
    }
    for what, i, name in _declared(spec):
        if name not in used:
            yield codes.UNUSED(what=what, name=name, why="", loc=(f"{what}s", i))
    read: set[str] = set()
    adding = [share for share in spec.shares if not share.is_magnitude]
    # Scales are told back with the alpha that they read, and shipped specs have a default for it.
    if spec.defaults.dropout is not None and all(s.dropout is not None for s in adding):
        yield codes.UNUSED(
            what="the default",
            name="dropout",
            why=": each share has its own",
            loc=("defaults", "dropout"),
        )
    with suppress(KeyError, SpecError):
        for share in adding:
            read |= _roles_of(share) - {*share.init, *share.references}
        for role in spec.defaults.init:
            if role not in read:
                yield codes.UNUSED(
                    what="the default start of",
                    name=role,
                    why=": no share starts it by default",
                    loc=("defaults", "init", role),
                )


def _roles_of(share: m.Share) -> set[str]:
    """Return the tensors that a share may have, whichever its options are."""
    kind = transform_kind(PLAIN)
    roles = {*kind.pooled, *kind.owned}
    for step in share.steps.values():
        kind = transform_kind(step.transform)
        roles |= {*kind.pooled, *kind.owned}
        if step.gate is not None:
            roles |= {ROUTER, f"{ROUTER}_A", f"{ROUTER}_B"}
        if step.name is not None:
            roles |= {step.name, f"{step.name}_A", f"{step.name}_B"}
    return roles


def _ranges(spec_settings: SpecSettings) -> Iterator[Problem]:
    """Find ranges with reversed ends, and differences of layers that were meant as ranges."""
    scope = Scope(spec_settings.params)
    for loc, part, purpose, _, subject in spec_settings.mentions:
        match part:
            case m.Range(first=first, last=last) if first is not None and last is not None:
                with suppress(EvaluationError):  # Planning reports what a site decides.
                    ends = scope.number(first), scope.number(last)
                    if ends[0] > ends[1] and (ends[0] < 0) == (ends[1] < 0):
                        yield empty_range(*ends, loc)
            case m.Binary(op="-", left=int(first), right=int(last)) if first < last:
                if subject == m.Ref(ref="layer"):
                    fact = Difference(first, last, compared=purpose == "side")
                    yield codes.NO_VALUE(why="it is a difference", loc=loc, fact=fact)


def _cases(spec_settings: SpecSettings) -> Iterator[Problem]:
    """Find matches without an `else` where no arm may be missing."""
    for mention in spec_settings.mentions:
        is_rank = mention.loc[::2] == ("shares", "rank")
        if isinstance(mention.part, m.Cases) and mention.part.otherwise is None and not is_rank:
            yield codes.NO_ELSE(loc=mention.loc)


def empty_range(first: float, last: float, loc: Loc) -> Problem:
    """Return the problem of a range with reversed ends."""
    return codes.EMPTY_RANGE(first=first, last=last, loc=loc, fact=ReversedRange(first, last))


def _keys(spec: m.Spec) -> Iterator[Problem]:
    """Find keys with a different value for every site, or one value for all."""
    params = [param.name for param in spec.params]
    for i, share in enumerate(spec.shares):
        for place, key in share.placed_keys.items():
            for j, part in enumerate(key):
                loc: Loc = ("shares", i, *place, j)
                names = {name for name, _ in names_read(part, params, "key")}
                for let in reversed(spec.lets):
                    if let.value is not None and let.name in names:
                        names.remove(let.name)
                        names |= {name for name, _ in names_read(let.value, params, "word")}
                match part:
                    case m.Ref(ref="none"):
                        fact = UnknownName("none", "key", frozenset({*m.ATTRIBUTES, "model"}))
                        yield codes.UNKNOWN_NAME(name="none", loc=loc, fact=fact)
                    case m.Binary(op="-", left=0, right=m.Ref()):
                        why = "a hyphen is a minus"
                        yield codes.NO_VALUE(why=why, loc=loc, fact=Fault.NEGATED_KEY)
                    case m.Binary(op="/", left=m.Ref(ref=name)) if name in m.ATTRIBUTES:
                        yield codes.NOT_ROUNDED(name=name, loc=loc, fact=Fault.DOES_NOT_ROUND)
                    case _ if names <= {"layers"} and "references" not in place:
                        fault = None
                        if names:
                            fault = Fault.COUNTS_INSTEAD_OF_LAYER
                        elif len(key) > 1:
                            fault = Fault.NEEDLESS_PART
                        yield codes.CONSTANT_KEY(loc=loc, fact=fault)


def _share(spec_settings: SpecSettings, index: int, share: m.Share) -> Iterator[Problem]:
    loc: Loc = ("shares", index, "rank")
    if isinstance(share.rank, m.Cases):
        arms = [(arm.result, (*loc, "arms", i, "result")) for i, arm in enumerate(share.rank.arms)]
        if share.rank.otherwise is not None:
            arms.append((share.rank.otherwise, (*loc, "otherwise")))
    else:
        arms = [(share.rank, loc)]
    scope = Scope(spec_settings.params)
    for rank, place in arms:
        lets = {let.name for let in spec_settings.spec.lets}
        chosen = any(isinstance(part, m.If | m.Cases) for _, part, *_ in mentions(rank, "number"))
        if chosen or any(ref.ref in {*m.ATTRIBUTES, *lets} for _, ref in refs(rank)):
            continue  # Depends on the site: planning reports it.
        try:
            value = rank_of(rank, scope, place)
        except EvaluationError as error:
            yield error.problem
            continue
        if value:
            spec_settings.for_rank(index, value)
