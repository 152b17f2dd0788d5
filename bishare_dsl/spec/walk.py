"""Walk over the expressions of a spec, with their locations, their purposes and the modules they concern."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from functools import cache
from typing import Literal, NamedTuple, TypeVar

from pydantic import BaseModel

from bishare_dsl.diagnostics import Loc
from bishare_dsl.spec import expression as m
from bishare_dsl.spec.spec import (
    Gain,
    Gate,
    Let,
    Param,
    Reference,
    Settings,
    Share,
    Spec,
    Step,
    Via,
)

Purpose = Literal[
    "condition", "part", "key", "number", "side", "subject", "item", "arm", "word", "name"
]
"""The purpose of an expression. A ``condition`` is true or false, and so is a ``part`` of one. A ``side`` is
compared with the other side, and an ``item`` or an ``arm``'s value with a ``subject``. The reader of a
``word`` decides what it means; a ``name`` is a plain word."""

Domain = Literal["model", "let", "target", "share", "parameters"]
"""The modules that an expression concerns: of the model, of a let, of the target or of the share; or the
parameters outside of sites."""


class Mention(NamedTuple):
    """An expression in a spec.

    ``domain`` is None if the expression concerns no module. ``compared_with`` is the expression that an
    item is compared with. The expression is evaluated only if the conditions in ``assuming`` have the truth
    values there.
    """

    loc: Loc
    part: m.Range | m.Expression
    purpose: Purpose
    domain: Domain | None = None
    compared_with: m.Expression | None = None


# The purpose of each field with expressions. `_add` and `_add_cases` handle `If` and `Cases`.
_PURPOSE: Mapping[tuple[type[BaseModel], str], Purpose] = {
    (m.Selection, "include"): "condition",
    (m.Selection, "exclude"): "condition",
    (Param, "value"): "number",
    (Settings, "alpha"): "number",
    (Settings, "scale"): "number",
    (Settings, "dropout"): "number",
    (Settings, "init"): "word",
    (Gain, "rank"): "number",
    (Gain, "out"): "number",
    (Step, "options"): "word",
    (Via, "options"): "word",
    (Gate, "top"): "word",
    (Share, "per"): "key",
    (Share, "keys"): "key",
    (Reference, "key"): "key",
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
_DOMAIN: Mapping[tuple[type[BaseModel], str], Domain] = {
    (Settings, "scale"): "target",
    (Settings, "dropout"): "target",
    (Spec, "target"): "model",
    (Spec, "train"): "parameters",
    (Let, "selection"): "let",
    (Share, "where"): "target",
    (Share, "per"): "share",
    (Share, "keys"): "share",
    (Share, "references"): "share",
    (Share, "rank"): "share",
    (Share, "scale"): "share",
    (Share, "dropout"): "share",
}
_PREDICATES = (m.Match, m.Member, m.Compare, m.And, m.Or, m.Not)
_EXPRESSIONS = (*_PREDICATES, m.Ref, m.Binary, m.Call, m.Range, m.If, m.Cases, int, float)
_Part = TypeVar("_Part", bound=BaseModel)


def mentions(
    part: object, purpose: Purpose | None = None, loc: Loc = (), domain: Domain | None = None
) -> list[Mention]:
    """List every expression in a part of a spec, including nested expressions.

    Args:
        part: a spec, a statement, an expression, or several of them.
        purpose: of the part itself; so are the other arguments, see `Mention`.

    Raises:
        TypeError: the tables have no purpose for the field of an expression.
    """
    result: list[Mention] = []
    _add(result, part, purpose, loc, domain)
    return result


def _add(
    mentioned: list[Mention],
    part: object,
    purpose: Purpose | None,
    loc: Loc,
    domain: Domain | None,
    compared_with: m.Expression | None = None,
) -> None:
    """Add every expression in a part of a spec to ``mentioned``."""
    if isinstance(part, tuple | dict):
        items = part.items() if isinstance(part, dict) else enumerate(part)
        for name, item in items:
            _add(mentioned, item, purpose, (*loc, name), domain, compared_with)
        return
    if isinstance(part, str):
        part = m.Ref(ref=part)
        purpose = "name"
    if isinstance(part, _EXPRESSIONS):
        if purpose is None:
            raise TypeError(f"the expression at {loc} has no purpose")
        # A predicate is a condition, even as a key.
        purpose = "condition" if purpose == "key" and isinstance(part, _PREDICATES) else purpose
        mentioned.append(Mention(loc, part, purpose, domain, compared_with))
    if isinstance(part, m.If):
        _add(mentioned, part.condition, "condition", (*loc, "condition"), domain)
        _add(mentioned, part.then, purpose, (*loc, "then"), domain)
        _add(mentioned, part.otherwise, purpose, (*loc, "otherwise"), domain)
    elif isinstance(part, Let) and part.value is not None:
        _add(mentioned, part.value, "key", (*loc, "selection", "include", 0), "let")
    elif isinstance(part, m.Cases):
        _add_cases(mentioned, part, purpose, loc, domain)
    elif isinstance(part, BaseModel):
        _add_fields(mentioned, part, loc, domain)


def _add_cases(
    mentioned: list[Mention],
    cases: m.Cases,
    purpose: Purpose | None,
    loc: Loc,
    domain: Domain | None,
) -> None:
    """Add the subject of a case distinction, and the values and the result of each arm."""
    # A key may have words of its own.
    purpose = "word" if purpose == "key" else purpose
    _add(mentioned, cases.subject, "subject", (*loc, "subject"), domain)
    for i, arm in enumerate(cases.arms):
        arm_loc = (*loc, "arms", i)
        _add(mentioned, arm.values, "arm", (*arm_loc, "values"), domain, cases.subject)
        _add(mentioned, arm.result, purpose, (*arm_loc, "result"), domain)
    if cases.otherwise is not None:
        _add(mentioned, cases.otherwise, purpose, (*loc, "otherwise"), domain)


def _add_fields(mentioned: list[Mention], part: BaseModel, loc: Loc, domain: Domain | None) -> None:
    """Add the fields of a statement or an expression, each with its purpose."""
    for name, field_purpose, whose in _fields(type(part)):
        value = getattr(part, name)
        if field_purpose is None and not isinstance(value, (BaseModel, tuple, dict)):
            continue
        compared_with = None
        if isinstance(part, m.Compare):
            compared_with = part.left if name == "right" else part.right
        elif isinstance(part, m.Member):
            compared_with = part.value if name == "among" else None
        _add(mentioned, value, field_purpose, (*loc, name), whose or domain, compared_with)


@cache
def _fields(kind: type[BaseModel]) -> list[tuple[str, Purpose | None, Domain | None]]:
    """List the fields of a part of a spec, with their purpose and domain from the tables, if any."""
    fields = []
    for name in kind.model_fields:
        # The purposes of all settings are listed once, under `Settings`.
        purpose = _PURPOSE.get((Settings if name in Settings.model_fields else kind, name))
        fields.append((name, purpose, _DOMAIN.get((kind, name))))
    return fields


def reads_param(mention: Mention, params: Container[str]) -> bool:
    """Return whether a bare name can be a param, which it never is in a condition."""
    named = isinstance(mention.part, m.Ref) and mention.part.ref in params
    return named and mention.purpose not in ("condition", "part")


def names_read(
    part: object, params: Container[str] = (), purpose: Purpose = "word"
) -> Iterator[tuple[str, Purpose]]:
    """Yield the names that a part of a spec reads, with the purpose of each.

    They include the attributes of patterns. Params are left out.
    """
    for mention in mentions(part, purpose):
        if isinstance(mention.part, m.Ref) and not reads_param(mention, params):
            yield mention.part.ref, mention.purpose
        elif isinstance(mention.part, m.Match):
            yield mention.part.attribute, mention.purpose


def refs(part: object, loc: Loc = ()) -> Iterator[tuple[Loc, m.Ref]]:
    """Yield every bare name in a part of a spec, with its location."""
    return parts_of(part, m.Ref, loc)


def parts_of(part: object, kind: type[_Part], loc: Loc = ()) -> Iterator[tuple[Loc, _Part]]:
    """Yield all expressions of one kind in a part of a spec, with their locations."""
    for mention in mentions(part, "word", loc):
        if isinstance(mention.part, kind):
            yield mention.loc, mention.part
