"""The settings of a share at a rank: transform, scale, dropout and the initial values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal, get_args

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import Loc, PlanError, Problem, SpecError, raise_errors
from bishare_dsl.diagnostics.codes import spec as codes
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.plan.facts import (
    KeylessRole,
    LetAsNumber,
    NoProbability,
    ShareWithoutRole,
    StartFault,
    UnknownRole,
    WithoutValue,
)
from bishare_dsl.plan.facts import Start as StartFact
from bishare_dsl.plan.references import Owner, key_of, owner_of, tensor_text
from bishare_dsl.plan.via import LoadedVia, load_via
from bishare_dsl.spec.evaluate import EvaluationError, Scope, Value
from bishare_dsl.spec.facts import Fault, UnknownName
from bishare_dsl.spec.walk import Purpose, mentions, names_read, refs
from bishare_dsl.transforms import (
    GAIN_OUT,
    GAIN_RANK,
    Start,
    Transform,
    Width,
    guard,
)
from bishare_dsl.transforms.described import (
    largest_fit,
    zero_parts,
)
from bishare_dsl.transforms.protocol import own_starts
from bishare_dsl.transforms.registry import COMPOSED

_INITIALS: dict[str, Start] = {
    name: Start(name, 0.02 if name == "normal" else 1.0)
    for name in get_args(m.Initial)
    if name not in ("constant", "choice", "sparse")
}
"""Initial values that a spec can name by one word."""


COUNTED: tuple[Literal["layer", "expert"], ...] = ("layer", "expert")
"""Attributes that count from 0 or are `none`."""

_OF_WEIGHT = ("svd", "svd_bottom")
"""Initial values with which ``scale * B A`` is a part of the weight."""


class ShareSettings(Record):
    """A share's settings at one rank.

    ``auto`` lists the options of the transform that depend on the widths of the share's sites, see `fitted`.
    ``starts`` maps roles to initial values, ``gains`` lists the roles of gains, and ``frozen`` maps
    locations in the spec to the roles that they freeze. ``is_part`` says that the initial term is not zero,
    but may equal a part of the base, and ``subtracted`` that it must be subtracted. A ``scale`` or
    ``dropout`` that depends on the module is 1 or 0 until `SpecSettings.at_site` computes it.
    Of roles that are references, ``starts`` has the initial values of the tensors that they are, and
    ``frozen_elsewhere`` lists those that another share freezes.
    """

    transform: Transform
    scale: float
    dropout: float
    starts: Mapping[str, Start]
    gains: Set[str]
    frozen: Mapping[Loc, str]
    auto: Sequence[str] = ()
    is_part: bool = False
    subtracted: bool = False
    frozen_elsewhere: Set[str] = frozenset()

    @cached_property
    def options(self) -> dict[str, Any]:
        """The options of the transform, as plain values."""
        return self.transform.options()

    @cached_property
    def untrained(self) -> frozenset[str]:
        """The roles of tensors that are never trained."""
        return frozenset((*self.frozen.values(), *self.frozen_elsewhere, *self.transform.fixed))


class _Borrowed(Record):
    """How the tensor starts that a role takes from another pool, and whether its share freezes it."""

    start: Start
    frozen: bool


class SpecSettings:
    """The settings of all shares, resolved once for each share and rank, and their problems."""

    def __init__(self, spec: m.Spec):
        self.spec = spec
        self.params, self.problems = m.param_values(spec)
        self._shown = {(one.code, one.message, one.loc) for one in self.problems}
        self.mentions = mentions(spec)
        self._found: dict[tuple[int, int], ShareSettings | None] = {}

    @property
    def failed(self) -> bool:
        """Whether a problem is an error."""
        return any(problem.severity == "error" for problem in self.problems)

    def add(self, problems: Iterable[Problem]) -> None:
        """Add problems, without repetitions from the ranks of one share."""
        for problem in problems:
            shown = problem.code, problem.message, problem.loc
            if shown not in self._shown:
                self._shown.add(shown)
                self.problems.append(problem)

    def for_rank(self, index: int, rank: int) -> ShareSettings | None:
        """Return the settings of share number ``index`` at a rank, or None if they are wrong."""
        if (index, rank) not in self._found:
            new: list[Problem] = []
            try:
                resolved = self._resolve(index, rank, new)
            except SpecError as error:  # a package's transform
                resolved = None
                new += at_via(self.spec, index, error)
            self.add(new)
            wrong = any(problem.severity == "error" for problem in new)
            self._found[index, rank] = None if wrong else resolved
        return self._found[index, rank]

    def read_at_sites(self, index: int) -> tuple[m.Expression, ...]:
        """Return the settings of a share that depend on the module: its scale, its dropout, or both."""
        settings = self.spec.settings(self.spec.shares[index])
        both = (settings.scale, settings.dropout)
        return tuple(part for part in both if part is not None and self._reads_site(part))

    def at_site(
        self, index: int, resolved: ShareSettings, rank: int, scope: Scope
    ) -> ShareSettings:
        """Return the settings of a share at a site, whose scale and dropout may read its attributes.

        Args:
            index: the number of the share.
            resolved: its settings at the rank.
            rank: its rank at the site.
            scope: the scope of the site.

        Raises:
            PlanError: the scale or the dropout has no value at the site, or a wrong one.
        """
        problems: list[Problem] = []
        scale = self._scale(index, rank, problems, scope)
        dropout = self._dropout(index, problems, scope)
        raise_errors(PlanError, problems)
        changed = replace(resolved, scale=scale, dropout=dropout)
        return _of_weight(changed) if changed.is_part else changed

    def _reads_site(self, part: m.Expression) -> bool:
        """Return whether the value of an expression depends on the module."""
        known = {*m.ATTRIBUTES, *(let.name for let in self.spec.lets)}
        names = names_read(part, self.params, "number")
        # Every name in a condition is a let or a kind.
        return any(purpose in ("condition", "part") or name in known for name, purpose in names)

    def _resolve(self, index: int, rank: int, problems: list[Problem]) -> ShareSettings | None:
        """Resolve a share at a rank. Problems go to ``problems``."""
        share = self.spec.shares[index]
        share_loc: Loc = ("shares", index)
        settings = self.spec.settings(share)
        scale = self._scale(index, rank, problems)
        dropout = self._dropout(index, problems)
        places: dict[str, Loc] = {
            role: (*(share_loc if role in share.init else ("defaults",)), "init", role)
            for role in settings.init
            if role not in share.references
        }
        starts = {
            role: self._initial(settings.init[role], place, problems)
            for role, place in places.items()
        }
        gains: dict[str, Start] = {}
        for role, name in ((GAIN_RANK, "rank"), (GAIN_OUT, "out")):
            amount = getattr(share.gain, name)
            if amount is not None:
                value = self._number(amount, (*share_loc, "gain", name), 0, problems, rank=rank)
                gains[role] = Start("constant", value)
        new: list[Problem] = []
        loaded = _transform(share, rank, self.params, new)
        resolved = None
        if loaded is not None:
            transform = loaded.transform
            starts |= gains | own_starts(transform, starts)
            borrowed = self._borrowed(index, rank, new)
            starts |= {role: one.start for role, one in borrowed.items() if role in starts}
            resolved = ShareSettings(
                transform=transform,
                scale=scale,
                dropout=dropout,
                starts=starts,
                gains=gains.keys(),
                frozen=_frozen(share, starts, self.params),
                auto=loaded.auto,
                frozen_elsewhere={role for role, one in borrowed.items() if one.frozen},
            )
            if not any(problem.severity == "error" for problem in (*problems, *new)):
                new += _roles(share, resolved)
                new += _of_weights(share, resolved)
                problems += _singular(share, resolved, places)
                has = (*transform.roles, *gains)
                zero = zero_parts(transform, {role: starts[role] for role in has})
                if not new:
                    new += _start(share, resolved, zero)
                if not zero:
                    subtracted = not share.nonzero_start
                    resolved = _of_weight(replace(resolved, is_part=True, subtracted=subtracted))
        problems += (problem.within(*share_loc) for problem in new)
        return resolved

    def _borrowed(self, index: int, rank: int, problems: list[Problem]) -> dict[str, _Borrowed]:
        """Return how the tensors start that a share takes from other pools, by its roles.

        Args:
            index: the number of the share.
            rank: of the share. The other share's transform has options as at this rank.
            problems: of the references, located in the share.
        """
        borrowed: dict[str, _Borrowed] = {}
        for role in self.spec.shares[index].references:
            try:
                owner = owner_of(self.spec, index, role)
                borrowed[role] = self._lent(index, role, owner, rank)
            except SpecError as error:
                problems += error.problems
        return borrowed

    def _lent(self, index: int, role: str, owner: Owner, rank: int) -> _Borrowed:
        """Return how the tensor starts that a role of share number ``index`` takes from its owner.

        Raises:
            SpecError: the owner has no such tensor, or one that cannot be in two places (BS215, BS232),
                located in the share.
        """
        share = self.spec.shares[index]
        lender = self.spec.shares[owner.index]
        reference = share.references[role]
        loc: Loc = ("references", role)
        text = tensor_text(reference.share, reference.role)

        def refused(why: str, fact: object = None) -> SpecError:
            problem = codes.NO_REFERENCE(
                role=role, share=share.name, tensor=text, why=why, loc=loc, fact=fact
            )
            return SpecError(problem)

        loaded = _load(lender, rank, self.params, [])
        if loaded is None:
            raise refused(f"share `{lender.name}` is wrong at rank {rank}")
        transform = loaded.transform
        valid = [one for one in transform.roles if one not in transform.fixed]
        if owner.role not in valid:
            names = {other.name for other in self.spec.shares if not other.is_magnitude}
            if reference.share is None and owner.role in names:
                why = f"`{owner.role}` is a share, and a reference names one of its tensors"
                raise refused(why, ShareWithoutRole(owner.role))
            fact = UnknownRole(owner.role, tuple(valid))
            problem = codes.UNKNOWN_ROLE(
                role=owner.role,
                share=lender.name,
                what="lend",
                loc=(*loc, "role"),
                fact=fact,
            )
            raise SpecError(problem)
        parts = len(key_of(lender, owner.role, transform))
        if reference.key is not None and len(reference.key) != parts:
            count = len(reference.key)
            raise refused(f"this key has {count} parts, and the key of `{text}` has {parts}")
        starts = {
            name: self._initial(value, loc, [])
            for name, value in self.spec.settings(lender).init.items()
        }
        starts |= own_starts(transform, starts)
        if any(starts[one].init in m.SINGULAR for one in transform.roles):
            raise refused(f"share `{lender.name}` starts with directions of weights")
        frozen = _frozen(lender, starts, self.params).values()
        return _Borrowed(start=starts[owner.role], frozen=owner.role in frozen)

    def _number(
        self,
        part: m.Expression | None,
        loc: Loc,
        otherwise: float,
        problems: list[Problem],
        **names: Value,
    ) -> float:
        """Evaluate a setting that concerns no module; ``names`` are those that it may read beside params."""
        if part is None:
            return otherwise
        scope = Scope(self.params | names)
        try:
            check_names(scope, part, loc)
            return float(scope.number(part, loc))
        except EvaluationError as error:
            problem = error.problem
            if isinstance(part, m.Ref) and part.ref in {let.name for let in self.spec.lets}:
                problem = replace(problem, fact=LetAsNumber(part.ref))
            problems.append(problem)
            return otherwise

    def _place(self, index: int, name: str) -> Loc:
        """Return the location of a setting, in the share or in the spec's defaults."""
        if getattr(self.spec.shares[index], name) is None:
            return "defaults", name
        return "shares", index, name

    def _number_at(
        self,
        part: m.Expression,
        loc: Loc,
        otherwise: float,
        problems: list[Problem],
        site: Scope | None,
        **names: Value,
    ) -> float:
        """Evaluate a setting that may depend on the module. Without a ``site`` it is then ``otherwise``."""
        if not self._reads_site(part):
            return self._number(part, loc, otherwise, problems, **names)
        if site is None:
            return otherwise
        scope = replace(site, values={**site.values, **names})
        try:
            return float(scope.number(part, loc))
        except EvaluationError as error:
            problems.append(without_value(error.problem, part, scope))
            return otherwise

    def _scale(
        self, index: int, rank: int, problems: list[Problem], site: Scope | None = None
    ) -> float:
        """Compute the scale of a share, which may read its alpha, and attributes of the ``site``."""
        settings = self.spec.settings(self.spec.shares[index])
        place = self._place(index, "alpha")
        alpha = self._number(settings.alpha, place, rank, problems, rank=rank)
        scale = alpha / rank
        if settings.scale is not None:
            place = self._place(index, "scale")
            names: dict[str, Value] = {"rank": rank}
            if settings.alpha is not None:
                names["alpha"] = alpha
            reads_alpha = "alpha" in {ref.ref for _, ref in refs(settings.scale)}
            if reads_alpha and settings.alpha is None:
                problems.append(codes.NO_ALPHA(loc=place))
            else:
                scale = self._number_at(settings.scale, place, 1, problems, site, **names)
        if scale == 0:
            why = "the term does nothing"
            fact = Fault.ZERO_SCALE if site is None else Fault.ZERO_SCALE_AT_SITE
            what = f"scale{_at(site)}"
            problems.append(codes.BAD_NUMBER(what=what, value=0, why=why, loc=place, fact=fact))
        return scale

    def _dropout(self, index: int, problems: list[Problem], site: Scope | None = None) -> float:
        """Compute the dropout of a share, which may read attributes of the ``site``."""
        place = self._place(index, "dropout")
        part = self.spec.settings(self.spec.shares[index]).dropout
        if part is None:
            return 0.0
        dropout = self._number_at(part, place, 0, problems, site)
        if not 0 <= dropout < 1:
            problem = codes.BAD_NUMBER(
                what=f"dropout{_at(site)}",
                value=dropout,
                why="it is a probability, 0 or more and below 1",
                loc=place,
                fact=NoProbability(dropout),
            )
            problems.append(problem)
        return dropout

    def _initial(self, given: m.Expression, loc: Loc, problems: list[Problem]) -> Start:
        from bishare_dsl.language.text import expression_text

        if isinstance(given, m.Call) and given.function == m.SPARSE:
            return self._sparse(given.arguments[0], (*loc, "arguments", 0), problems)
        name = self.params.get(given.ref, given.ref) if isinstance(given, m.Ref) else given
        if isinstance(name, str) and name in _INITIALS:
            return _INITIALS[name]
        word = expression_text(given).replace(" - ", "-") if name is given else str(name)
        fact = UnknownName(word, "init", frozenset({*_INITIALS, "sparse(0.1)"}))
        problems.append(codes.UNKNOWN_INIT(name=word, loc=loc, fact=fact))
        return Start("zeros")

    def _sparse(self, part: m.Expression, loc: Loc, problems: list[Problem]) -> Start:
        """Return the start of a tensor of which a fraction of the entries is not zero."""
        fraction = self._number(part, loc, 1, problems)
        if not 0 < fraction <= 1:
            what = "the fraction of `sparse`"
            why = "it is a probability, above 0 and at most 1"
            fact = NoProbability(fraction)
            problem = codes.BAD_NUMBER(what=what, value=fraction, why=why, loc=loc, fact=fact)
            problems.append(problem)
        return Start("sparse", fraction)


def settings_read(loc: Loc) -> tuple[str, ...]:
    """Return the settings of a share that the expression at a location may read."""
    return ("rank", "alpha") if "scale" in loc else ()


def without_value(problem: Problem, part: m.Expression, scope: Scope) -> Problem:
    """Add to a problem without a value that the site is in no layer, or of no expert."""
    for attribute in COUNTED:
        read = any(mention.part == m.Ref(ref=attribute) for mention in mentions(part, "word"))
        if read and scope.values[attribute] == "none":
            return replace(problem, fact=WithoutValue(attribute, str(scope.values["path"])))
    return problem


def _at(site: Scope | None) -> str:
    """Name a module at the end of a phrase."""
    return "" if site is None else f" of `{site.values['path']}`"


def _of_weight(resolved: ShareSettings) -> ShareSettings:
    """Scale the starts that are directions of a weight, so that ``scale * B A`` equals that part of it."""
    starts = dict(resolved.starts)
    for role, start in resolved.starts.items():
        if start.init in _OF_WEIGHT:
            starts[role] = start._replace(amount=abs(resolved.scale) ** -0.5)
    return replace(resolved, starts=starts)


def _frozen(share: m.Share, roles: Collection[str], params: Mapping[str, Value]) -> dict[Loc, str]:
    """Map locations to the roles that a share freezes, directly or by a param that holds a role or `none`."""
    named = {
        ("freeze", i): role if role in roles else str(params.get(role, role))
        for i, role in enumerate(share.freeze)
    }
    return {loc: role for loc, role in named.items() if role != "none"}


def at_via(spec: m.Spec, index: int, error: SpecError) -> list[Problem]:
    """Locate problems of a share's transform at its `via`."""
    loc: Loc = ("shares", index) if spec.shares[index].via is None else ("shares", index, "via")
    return [replace(problem, loc=loc) for problem in error.problems]


def check_names(scope: Scope, expression: object, loc: Loc, asked: Purpose = "number") -> None:
    """Check every name of an expression that concerns no module, including unevaluated branches.

    Raises:
        EvaluationError: BS201 for a name without a meaning here, BS210 for an attribute of a module.
    """
    declared = {*scope.values, "none"}
    for mention in mentions(expression, asked, loc):
        part = mention.part
        beside = mention.compared_with
        match mention.purpose, part:
            case "number", m.Ref():
                scope.number(part, mention.loc)
            case "condition" | "part", m.Ref() | m.Match():
                scope.holds(part, mention.loc)
            case "subject" | "side", m.Ref(ref=name) if name not in declared:
                if name in m.ATTRIBUTES:
                    scope.attribute(name, mention.loc)
                if not isinstance(beside, m.Ref) or beside.ref not in declared:
                    fact = UnknownName(name, "param", frozenset(declared))
                    raise EvaluationError(codes.UNKNOWN_NAME(name=name, loc=mention.loc, fact=fact))


def _roles(share: m.Share, resolved: ShareSettings) -> Iterator[Problem]:
    """Find settings of the share for tensors that its transform does not have, or cannot have so."""
    transform = resolved.transform
    own = _own_roles(share, resolved)
    yield from _unknown_roles(share, resolved, own)
    yield from _pooled_without_key(share, transform, own)
    if not transform.linear and GAIN_RANK in resolved.gains:
        loc = ("gain",) if share.gain.out is None else ("gain", "rank")
        name = transform.name if share.via is None else _written(share.via, transform)
        yield codes.NOT_LINEAR(transform=name, what="gain rank", loc=loc)


def _own_roles(share: m.Share, resolved: ShareSettings) -> list[str]:
    """List the roles of tensors that are not those of other pools."""
    roles = [*resolved.transform.roles, *resolved.gains]
    return [role for role in roles if role not in share.references]


def _unknown_roles(
    share: m.Share, resolved: ShareSettings, own: Sequence[str]
) -> Iterator[Problem]:
    """Find roles that a share freezes, starts, gives a key or takes from a pool, and that it cannot."""
    transform = resolved.transform

    def unknown_role(role: str, what: str, loc: Loc, has: Sequence[str]) -> Problem:
        fact = UnknownRole(role, tuple(has))
        return codes.UNKNOWN_ROLE(role=role, share=share.name, what=what, loc=loc, fact=fact)

    # Tensors that never train accept neither `init` nor `freeze`, and those of other pools nothing.
    trained = [role for role in own if role not in transform.fixed]
    for loc, role in resolved.frozen.items():
        if role not in trained:
            by_param = role != share.freeze[int(loc[-1])]
            possible = [*trained, "none"] if by_param else trained
            yield unknown_role(role, "freeze", loc, possible)
    started = [role for role in trained if role not in resolved.gains]
    for role in share.init:
        if role not in started:
            yield unknown_role(role, "start", ("init", role, "name"), started)
    for role in share.keys:
        if role not in own:
            yield unknown_role(role, "give a key", ("keys", role, "name"), own)
    possible = [role for role in transform.roles if role not in transform.fixed]
    for role in share.references:
        if role not in possible:
            what = "take from another pool"
            yield unknown_role(role, what, ("references", role, "name"), possible)


def _pooled_without_key(
    share: m.Share, transform: Transform, own: Sequence[str]
) -> Iterator[Problem]:
    """Find pooled tensors without a key, or a key for all tensors that none needs."""
    placed = {*share.keys, *share.references}
    keyless = [role for role in transform.pooled if role not in placed]
    all_known = all(role in own for role in share.keys)
    if keyless and share.per is None and all_known:
        fact = KeylessRole(keyless[0])
        yield codes.NO_KEY(share=share.name, role=keyless[0], loc=("keys",), fact=fact)
    elif not keyless and share.per is not None:
        why = ": each tensor has a key of its own"
        yield codes.UNUSED(what="key", name="per", why=why, loc=("per",))


def _singular(
    share: m.Share, resolved: ShareSettings, places: Mapping[str, Loc]
) -> Iterator[Problem]:
    """Find tensors that cannot start as directions of a weight in any model."""
    transform = resolved.transform
    not_plain = partial(codes.NOT_PLAIN, share=share.name, transform=transform.name)
    for role, loc in places.items():
        start = resolved.starts[role].init
        if start in m.SINGULAR and role in transform.roles and role not in transform.plain:
            plain = " and ".join(f"`{role}`" for role in transform.plain)
            only = f", and {plain} alone can" if plain else ""
            yield not_plain(role=role, start=start, only=only, loc=loc)


def _of_weights(share: m.Share, resolved: ShareSettings) -> Iterator[Problem]:
    """Find references of a share that starts with directions of weights, which it would subtract."""
    singular = [role for role, start in resolved.starts.items() if start.init in m.SINGULAR]
    if not any(role in resolved.transform.roles for role in singular):
        return
    for role, reference in share.references.items():
        yield codes.NO_REFERENCE(
            role=role,
            share=share.name,
            tensor=tensor_text(reference.share, reference.role),
            why=f"share `{share.name}` starts with directions of weights",
            loc=("references", role),
        )


def _start(share: m.Share, resolved: ShareSettings, parts: frozenset[str]) -> Iterator[Problem]:
    """Check that the term starts at zero and can leave it, or that its initial value is subtracted."""
    transform = resolved.transform
    starts = (resolved.starts[role].init for role in transform.roles)
    roles = {*transform.roles, *resolved.gains} - {*share.references}
    loc: Loc = ("init",) if share.init else ()
    if len(parts) > 1:
        both = " and ".join(f"`{part}`" for part in sorted(parts))
        what = f"starts with both {both} at zero, so that it never learns"
        fault = StartFault.TWO_ZEROS
    elif frozen := sorted(parts & {*resolved.frozen.values(), *resolved.frozen_elsewhere}):
        what = f"freezes `{frozen[0]}` at zero, so that it never does anything"
        loc = ("freeze",)
        fault = StartFault.FROZEN_ZERO
    elif parts and share.nonzero_start:
        yield codes.UNUSED(
            what="clause",
            name="start nonzero",
            why=": the share starts at zero all the same",
            loc=("nonzero_start",),
        )
        return
    elif not parts and not share.nonzero_start and m.SINGULAR.isdisjoint(starts):
        what = "does not start at zero, so that the model starts different from its base"
        fault = StartFault.NO_ZERO
    else:
        return
    untrained = resolved.untrained
    if fault is StartFault.NO_ZERO:
        untrained = frozenset(transform.fixed)
    fact = StartFact(fault, tuple(sorted(roles - untrained)), tuple(sorted(untrained)))
    yield codes.START(share=share.name, what=what, loc=loc, fact=fact)


def _transform(
    share: m.Share, rank: int, params: dict[str, Value], problems: list[Problem]
) -> LoadedVia | None:
    """Return the transform of a share at a rank that it can have."""
    loaded = _load(share, rank, params, problems)
    if loaded is None:
        return None
    transform = loaded.transform
    try:
        with guard(transform, "check_rank", ValueError):
            transform.check_rank(rank)
    except ValueError as error:
        name = transform.name if share.via is None else _written(share.via, transform)
        what = f"rank = {rank}"
        problems.append(codes.BAD_OPTION(transform=name, what=what, why=f"{error}", loc=("rank",)))
        return None
    return loaded


def _load(
    share: m.Share, rank: int, params: dict[str, Value], problems: list[Problem]
) -> LoadedVia | None:
    """Return the transform of a share, with its options as at a rank."""
    scope = Scope(params | {"rank": rank})

    def evaluate(expression: m.Expression, loc: Loc) -> Value:
        check_names(scope, expression, loc, "word")
        return scope.value(expression, loc)

    return load_via(share, params, evaluate, problems)


def _written(via: m.Via | m.Places, transform: Transform) -> str:
    """Name the transform of a `via` in a message."""
    from bishare_dsl.language.text import via_text

    return f"`{via_text(via)}`" if transform.name == COMPOSED else transform.name


def fitted(resolved: ShareSettings, sites: Collection[tuple[int, Width]]) -> ShareSettings:
    """Return a share's settings with a number for each `auto` option.

    Args:
        resolved: the settings, with these options at their defaults.
        sites: the rank of the share and the widths at its sites.
    """
    transform = resolved.transform
    for option in resolved.auto:
        size = largest_fit(transform, option, sites)
        transform = transform.with_option(option, size)
    return replace(resolved, transform=transform) if resolved.auto else resolved
