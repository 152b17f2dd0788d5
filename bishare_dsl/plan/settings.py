"""What a share says once its rank is known: transform, scale, dropout and the factors' starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from pydantic import BaseModel, ValidationError

from bishare_dsl.diagnostics import Loc, Problem, nearest
from bishare_dsl.diagnostics.codes import spec as codes
from bishare_dsl.spec import Expression, Initial, Ref, Share, Spec
from bishare_dsl.spec.evaluate import EvaluationError, Scope, Value
from bishare_dsl.transforms import Identity, Transform, transform_kinds

_INITIALS: tuple[Initial, ...] = get_args(Initial)


@dataclass(frozen=True)
class Resolved:
    """A share's settings at one rank."""

    transform: Transform
    scale: float
    dropout: float
    init_a: Initial
    init_b: Initial
    warnings: tuple[Problem, ...] = ()


class Unresolved(Exception):
    """A share's settings are wrong; carries every problem, located within the share."""

    def __init__(self, problems: list[Problem]):
        super().__init__(problems)
        self.problems = problems


def params_of(spec: Spec) -> dict[str, Value]:
    """The values of a spec's params by name."""
    return {param.name: param.value for param in spec.params}


def resolve(spec: Spec, index: int, rank: int) -> Resolved:
    """The settings of share number ``index`` at a rank.

    Raises:
        Unresolved: with all that is wrong with them.
    """
    problems: list[Problem] = []
    params = params_of(spec)
    share = spec.shares[index]
    at: Loc = ("shares", index)
    settings = spec.settings(share)

    def number(expression: Expression, loc: Loc, **names: Value) -> float | None:
        try:
            return float(Scope(params | names).number(expression, loc))
        except EvaluationError as error:
            problems.append(error.problem)
            return None

    def place(name: str) -> Loc:
        """Where a setting stands: in the share, or among the spec's defaults."""
        return (*(at if getattr(share, name) is not None else ("defaults",)), name)

    def init_place(factor: str) -> Loc:
        own = getattr(share.init, factor) is not None
        return (*(at if own else ("defaults",)), "init", factor)

    alpha = None if settings.alpha is None else number(settings.alpha, place("alpha"))
    scale: float | None = 1.0
    if settings.scale is not None:
        names: dict[str, Value] = {"rank": rank}
        if alpha is not None:
            names["alpha"] = alpha
        if settings.alpha is None and any(r.ref == "alpha" for _, r in refs(settings.scale)):
            problems.append(codes.NO_ALPHA(loc=place("scale")))
            scale = None
        else:
            scale = number(settings.scale, place("scale"), **names)
    elif alpha is not None:
        scale = alpha / rank
    if scale == 0:
        where = place("scale" if settings.scale is not None else "alpha")
        problems.append(
            codes.BAD_NUMBER(what="scale", value=0, why="the term does nothing", loc=where)
        )
    dropout = 0.0 if settings.dropout is None else number(settings.dropout, place("dropout"))
    if dropout is not None and not 0 <= dropout < 1:
        problems.append(
            codes.BAD_NUMBER(
                what="dropout",
                value=dropout,
                why="it is a probability below 1",
                loc=place("dropout"),
            )
        )
    init = settings.init
    inits = {
        "A": _initial(init.A, "kaiming_uniform", params, init_place("A"), problems),
        "B": _initial(init.B, "zeros", params, init_place("B"), problems),
    }
    problems += (problem.within(*at) for problem in _start(share, inits))
    found: list[Problem] = []
    transform = _transform(share, rank, params, found)
    problems += (problem.within(*at) for problem in found)
    errors = any(problem.severity == "error" for problem in problems)
    if errors or transform is None or scale is None or dropout is None:
        raise Unresolved(problems)
    return Resolved(transform, scale, dropout, inits["A"], inits["B"], tuple(problems))


def refs(part: object, loc: Loc = ()) -> Iterator[tuple[Loc, Ref]]:
    """Every bare name in a part of a spec, with its place."""
    if isinstance(part, Ref):
        yield loc, part
    elif isinstance(part, BaseModel):
        for name in type(part).model_fields:
            yield from refs(getattr(part, name), (*loc, name))
    elif isinstance(part, tuple):
        for i, item in enumerate(part):
            yield from refs(item, (*loc, i))
    elif isinstance(part, dict):
        for name, item in part.items():
            yield from refs(item, (*loc, name))


def _initial(
    given: Expression | None,
    default: Initial,
    params: dict[str, Value],
    loc: Loc,
    problems: list[Problem],
) -> Initial:
    if given is None:
        return default
    name = params.get(given.ref, given.ref) if isinstance(given, Ref) else given
    for initial in _INITIALS:
        if initial == name:
            return initial
    problems.append(codes.UNKNOWN_INIT(name=name, loc=loc, help=nearest(str(name), _INITIALS)))
    return default


def _start(share: Share, inits: dict[str, Initial]) -> Iterator[Problem]:
    zeros = [factor for factor, initial in inits.items() if initial == "zeros"]
    loc: Loc = ("init",) if share.init.A is not None or share.init.B is not None else ()
    if len(zeros) == 2:
        yield codes.START(
            share=share.name,
            what="starts with both factors at zero, so that it never learns",
            loc=loc,
            help="start one of them at `kaiming_uniform`",
        )
    elif not zeros and not share.nonzero_start:
        yield codes.START(
            share=share.name,
            what="does not start at zero, so that the model starts different from its base",
            loc=loc,
            help="start one factor at `zeros`, or say `start nonzero` if this is meant",
        )
    elif zeros and share.nonzero_start:
        yield codes.UNUSED(
            what="permission",
            name="start nonzero",
            loc=("nonzero_start",),
            help="a factor starts at zero, and so does the term",
        )


def _transform(
    share: Share, rank: int, params: dict[str, Value], problems: list[Problem]
) -> Transform | None:
    if share.via is None:
        return Identity()
    kinds = transform_kinds()
    name = share.via.transform
    if (kind := kinds.get(name)) is None:
        problems.append(
            codes.UNKNOWN_TRANSFORM(name=name, loc=("via", "transform"), help=nearest(name, kinds))
        )
        return None
    known = [field.alias or option for option, field in kind.model_fields.items()]
    scope = Scope(params | {"rank": rank})
    values: dict[str, Value] = {}
    for option, expression in share.via.options.items():
        loc: Loc = ("via", "options", option)
        if option not in known:
            problems.append(
                codes.UNKNOWN_OPTION(
                    transform=name, name=option, loc=loc, help=nearest(option, known)
                )
            )
            continue
        try:
            values[option] = scope.value(expression, loc)
        except EvaluationError as error:
            problems.append(error.problem)
    try:
        transform = kind.model_validate(values)
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_context=False):
            option = str(fault["loc"][0]) if fault["loc"] else ""
            problems.append(
                codes.BAD_OPTION(
                    transform=name,
                    name=option or "these options",
                    value=values.get(option, "together"),
                    why=_why(fault["msg"]),
                    loc=("via", "options", option) if option else ("via",),
                )
            )
        return None
    try:
        transform.check_rank(rank)
    except ValueError as error:
        problems.append(
            codes.BAD_OPTION(transform=name, name="rank", value=rank, why=str(error), loc=("rank",))
        )
        return None
    return transform


def _why(message: str) -> str:
    """Pydantic's message as the end of our sentence."""
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
