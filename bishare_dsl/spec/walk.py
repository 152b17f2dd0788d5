"""The one walk over a spec: every expression in it, where it stands, what is asked of it, and of what."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from functools import cache
from typing import Literal, NamedTuple, TypeVar

from pydantic import BaseModel

from bishare_dsl.diagnostics import Loc
from bishare_dsl.spec import expression as m
from bishare_dsl.spec.spec import Gain, Let, Param, RankMatch, Settings, Share, Spec, Via

Asked = Literal[
    "condition", "part", "key", "number", "side", "subject", "item", "arm", "word", "name"
]
"""What an expression is there for. A ``condition`` is true or not, and so is a ``part`` of one; a ``side`` is
compared with the other; an ``item`` is what a ``subject`` may be, and so is one of an ``arm``. A ``word``
means what the one who takes it says, and a ``name`` is nothing but a word."""

Over = Literal["model", "let", "target", "share", "parameters"]
"""Of what it is asked: of the sites of the model, of a let's, of the target's, of the share's, or of the
parameters that are of no site."""


class Mention(NamedTuple):
    """An expression in a spec.

    ``over`` is None where no module is known. ``beside`` is what an item is compared with. It is asked where
    the conditions of ``given`` are as true as they say.
    """

    loc: Loc
    part: m.Range | m.Expression
    asked: Asked
    over: Over | None = None
    beside: m.Expression | None = None
    given: tuple[tuple[m.Expression, bool], ...] = ()


# What is asked in each field that has expressions; `_add` knows those of `If` and of a rank match.
_ASKED: Mapping[tuple[type[BaseModel], str], Asked] = {
    (m.Selection, "include"): "condition",
    (m.Selection, "exclude"): "condition",
    (Param, "value"): "number",
    (Settings, "alpha"): "number",
    (Settings, "scale"): "number",
    (Settings, "dropout"): "number",
    (Settings, "init"): "word",
    (Gain, "rank"): "number",
    (Gain, "out"): "number",
    (Via, "options"): "word",
    (Share, "per"): "key",
    (Share, "keys"): "key",
    (Share, "rank"): "number",
    (Share, "freeze"): "name",
    (m.And, "all_of"): "part",
    (m.Or, "any_of"): "part",
    (m.Not, "negated"): "part",
    (m.Member, "value"): "subject",
    (m.Member, "among"): "item",
    (m.Compare, "left"): "side",
    (m.Compare, "right"): "side",
    (m.Binary, "left"): "number",
    (m.Binary, "right"): "number",
    (m.Call, "arguments"): "number",
    (m.Range, "first"): "number",
    (m.Range, "last"): "number",
}
_OVER: Mapping[tuple[type[BaseModel], str], Over] = {
    (Spec, "target"): "model",
    (Spec, "train"): "parameters",
    (Let, "selection"): "let",
    (Share, "where"): "target",
    (Share, "per"): "share",
    (Share, "keys"): "share",
    (Share, "rank"): "share",
}
_PREDICATES = (m.Match, m.Member, m.Compare, m.And, m.Or, m.Not)
_EXPRESSIONS = (*_PREDICATES, m.Ref, m.Binary, m.Call, m.Range, m.If, int, float)
_Part = TypeVar("_Part", bound=BaseModel)
_Given = tuple[tuple[m.Expression, bool], ...]


def mentions(
    part: object, asked: Asked | None = None, loc: Loc = (), over: Over | None = None
) -> list[Mention]:
    """Find every expression in a part of a spec, and what is in it.

    Args:
        part: a spec, a statement, an expression, or several of them.
        asked: and the others, as in a `Mention`, are what is true of the part itself.

    Raises:
        TypeError: an expression stands where nobody says what is asked of it.
    """
    found: list[Mention] = []
    _add(found, part, asked, loc, over)
    return found


def _add(
    found: list[Mention],
    part: object,
    asked: Asked | None,
    loc: Loc,
    over: Over | None,
    beside: m.Expression | None = None,
    given: _Given = (),
) -> None:
    """Add every expression in a part of a spec."""
    if isinstance(part, tuple | dict):
        for name, item in part.items() if isinstance(part, dict) else enumerate(part):
            _add(found, item, asked, (*loc, name), over, beside, given)
        return
    if isinstance(part, str):
        part, asked = m.Ref(ref=part), "name"
    if isinstance(part, _EXPRESSIONS):
        if asked is None:
            raise TypeError(f"nobody says what is asked at {loc}")
        # What is true or not is asked that, as a key too.
        asked = "condition" if asked == "key" and isinstance(part, _PREDICATES) else asked
        found.append(Mention(loc, part, asked, over, beside, given))
    if isinstance(part, m.If):
        then, otherwise = ((*given, (part.condition, truth)) for truth in (True, False))
        _add(found, part.condition, "condition", (*loc, "condition"), over, None, given)
        _add(found, part.then, asked, (*loc, "then"), over, None, then)
        _add(found, part.otherwise, asked, (*loc, "otherwise"), over, None, otherwise)
    elif isinstance(part, RankMatch):
        _add(found, part.subject, "subject", (*loc, "subject"), over, None, given)
        for i, arm in enumerate(part.arms):
            at, fits = (*loc, "arms", i), m.Member(value=part.subject, among=arm.values)
            _add(found, arm.values, "arm", (*at, "values"), over, part.subject, given)
            here = (*given, (fits, True))
            _add(found, arm.rank, "number", (*at, "rank"), over, None, here)
            given = (*given, (fits, False))
        if part.otherwise is not None:
            at = (*loc, "otherwise")
            _add(found, part.otherwise, "number", at, over, None, given)
    elif isinstance(part, BaseModel):
        for name, said, whose in _fields(type(part)):
            value = getattr(part, name)
            if said is None and not isinstance(value, (BaseModel, tuple, dict)):
                continue
            beside = None
            if isinstance(part, m.Compare):
                beside = part.left if name == "right" else part.right
            elif isinstance(part, m.Member):
                beside = part.value if name == "among" else None
            _add(found, value, said, (*loc, name), whose or over, beside, given)


@cache
def _fields(kind: type[BaseModel]) -> list[tuple[str, Asked | None, Over | None]]:
    """List the fields of a part of a spec: what is asked in each, and of what, where the tables say it."""
    # What all settings have is said of them, and not once more of a share's.
    named = [(n, (Settings if n in Settings.model_fields else kind, n)) for n in kind.model_fields]
    return [(name, _ASKED.get(place), _OVER.get(place)) for name, place in named]


def reads_param(mention: Mention, params: Container[str]) -> bool:
    """Tell whether a bare name stands for a param: where truth is asked for, it never does."""
    named = isinstance(mention.part, m.Ref) and mention.part.ref in params
    return named and mention.asked not in ("condition", "part")


def names_read(
    part: object, params: Container[str] = (), asked: Asked = "word"
) -> Iterator[tuple[str, Asked]]:
    """Yield the names that a part of a spec reads, and what is asked of each.

    Attributes that patterns are of are among them; params are left out where they are read.
    """
    for mention in mentions(part, asked):
        if isinstance(mention.part, m.Ref) and not reads_param(mention, params):
            yield mention.part.ref, mention.asked
        elif isinstance(mention.part, m.Match):
            yield mention.part.attribute, mention.asked


def refs(part: object, loc: Loc = ()) -> Iterator[tuple[Loc, m.Ref]]:
    """Find every bare name in a part of a spec, with its place."""
    return parts_of(part, m.Ref, loc)


def parts_of(part: object, kind: type[_Part], loc: Loc = ()) -> Iterator[tuple[Loc, _Part]]:
    """Find all expressions of one kind in a part of a spec, with their places."""
    for mention in mentions(part, "word", loc):
        if isinstance(mention.part, kind):
            yield mention.loc, mention.part
