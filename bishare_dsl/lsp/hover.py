"""Describe the word under the pointer: a share with its counts, the sites of a name, or an option."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import get_args

from lark import Token
from lsprotocol import types as lsp
from pydantic.fields import FieldInfo

from bishare_dsl.diagnostics import Loc, SpecError
from bishare_dsl.language.syntax import Statement, first_token, span_of, unquoted
from bishare_dsl.lsp.document import Document
from bishare_dsl.lsp.names import name_at
from bishare_dsl.lsp.words import MEANINGS
from bishare_dsl.models.site import Site, runs_of
from bishare_dsl.show.rows import shares
from bishare_dsl.show.shared import conclusion, shared_table
from bishare_dsl.show.table import write_tables
from bishare_dsl.spec import And, Compare, Match, Member, Not, Or, Ref, Selection
from bishare_dsl.spec.evaluate import EvaluationError
from bishare_dsl.transforms import PLAIN, Transform, transform_kind

_CONDITIONS = (And, Compare, Match, Member, Not, Or, Ref)


def hover(document: Document, position: lsp.Position) -> lsp.Hover | None:
    """Describe the word at a position, or return None."""
    offset = document.positions.offset(position)
    token = document.token_at(offset)
    if token is None or token.type == "COMMENT":
        return None
    description = "\n\n".join(part for part in _descriptions(document, offset, token) if part)
    if not description:
        return None
    content = lsp.MarkupContent(lsp.MarkupKind.Markdown, description)
    return lsp.Hover(content, document.positions.range(span_of(token)))


def _descriptions(document: Document, offset: int, token: Token) -> Iterator[str | None]:
    if (at_offset := document.statement_at(offset)) is None:
        return
    statement, clause = at_offset
    heads = (str(statement.words.data), "replace") if clause is statement else ()
    if statement.keyword == "share" and (token in heads or _is_head(statement, token)):
        yield share_card(document, statement.name) or MEANINGS["share"]
    elif clause.keyword == "via" and (description := _of_transform(clause, token)):
        yield description
    elif (named := name_at(document, offset)) is not None:
        declared = named[0].statement
        yield _named(document, declared)
        yield _selected(document, offset) if declared.keyword == "param" else None
    else:
        yield MEANINGS.get(str(token)) if token.type != "STRING" else None
        yield _selected(document, offset)


def _is_head(statement: Statement, token: Token) -> bool:
    return span_of(token) == span_of(statement.name_token)


def share_card(document: Document, name: str) -> str | None:
    """Describe a share on the model (modules, ranks, pools, parameters), or return None without a plan."""
    if (plan := document.plan) is None:
        return None
    found = shares(plan)
    if not (own := [row for row in found if row.name == name]):
        return f"**{name}** has rank 0 and adds nothing."
    sentence = "; ".join(conclusion(plan, document.spec, found))
    told = write_tables([shared_table(plan, own), sentence], markdown=True)
    return f"**{name}** on {plan.base.name}\n\n{told}"


def _of_transform(clause: Statement, token: Token) -> str | None:
    """Describe the transform or the option that a token names, or return None."""
    named = name_of(clause)
    if (kind := transform_of(named)) is None:
        return None
    if token is named:
        lines = [f"- {option(name, field)}" for name, field in kind.model_fields.items()]
        doc = inspect.getdoc(kind) or ""
        return "\n\n".join(
            [f"**{kind.name}**, {kind.title}", doc.replace("``", "`"), "\n".join(lines)]
        )
    names = [tree.children[0] for tree in clause.words.find_data("option")]
    if any(token is one for one in names) and (field := field_of(kind, unquoted(token))):
        return option(unquoted(token), field)
    return None


def transform_of(name: Token | None) -> type[Transform] | None:
    """Return the transform of a name in a spec, or None if there is none; without a name the plain one."""
    try:
        return transform_kind(unquoted(name) if name else PLAIN)
    except (KeyError, SpecError):
        return None


def name_of(via: Statement) -> Token:
    """Return the name token after a `via`."""
    return first_token(via.words.children[0])


def field_of(kind: type[Transform], name: str) -> FieldInfo | None:
    """Find an option of a transform by its name in specs."""
    fields = kind.model_fields.items()
    return next(
        (field for field_name, field in fields if (field.alias or field_name) == name), None
    )


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the words that an option accepts. The result is empty for a number."""
    if field.annotation is bool:
        return "true", "false"
    return tuple(word for word in get_args(field.annotation) if isinstance(word, str))


def option(name: str, field: FieldInfo) -> str:
    """Describe an option in one line: type, default, meaning."""
    type_names = {int: "a whole number", float: "a number", bool: "`true` or `false`"}
    words = choices(field)
    types = [
        phrase
        for kind, phrase in type_names.items()
        if kind in (field.annotation, *get_args(field.annotation))
    ]
    what = " or ".join(f"`{word}`" for word in words) or " or ".join(types) or "a value"
    default = "" if field.default is None else f", by default `{str(field.default).lower()}`"
    meaning = f": {field.description}" if field.description else ""
    return f"`{field.alias or name}` takes {what}{default}{meaning}"


def _named(document: Document, statement: Statement) -> str | None:
    """Describe the value of a param or the sites of a let."""
    spec, name = document.spec, statement.name
    if statement.keyword == "param":
        value = spec.values.get(name) if spec else None
        return f"param **{name}**" + ("" if value is None else f" = `{value}`")
    let = next((let for let in spec.lets if let.name == name), None) if spec else None
    if let is None or document.sites is None:
        return f"let **{name}**"
    selected = document.sites.site_sets.select(let.selection)
    return f"let **{name}**: {summary(document.sites.of(selected))}"


def _selected(document: Document, offset: int) -> str | None:
    """Describe the sites that the condition at a character selects."""
    if document.sites is None:
        return None
    for loc, span in document.parts_at(offset):
        part = _part(document.spec, loc)
        if not document.is_own(span) or not isinstance(part, (*_CONDITIONS, Selection)):
            continue
        if not _is_condition(document.spec, loc):
            return None
        try:
            return f"Selects {summary(document.sites.of(document.sites.site_sets.select(part)))}."
        except EvaluationError:
            continue  # The word is inside a comparison, which is the condition.
    return None


def _part(part: object, loc: Loc) -> object:
    """Return the part of a spec at a location, or None if there is none."""
    for name in loc:
        if isinstance(part, (tuple, dict)):
            try:
                part = part[name]  # type: ignore[index]  # by index, or by name
            except (LookupError, TypeError):
                return None
        else:
            part = getattr(part, str(name), None)
    return part


def _is_condition(spec: object, loc: Loc) -> bool:
    """Return whether a location is inside a selection, where a bare name selects sites."""
    return any(isinstance(_part(spec, loc[:end]), Selection) for end in range(len(loc) + 1))


def summary(sites: Sequence[Site]) -> str:
    """Summarise sites: how many, of which kinds, in which layers."""
    if not sites:
        return "no module"
    kinds = ", ".join(f"`{kind}`" for kind in dict.fromkeys(site.kind for site in sites))
    count = f"{len(sites):,} module{'s' if len(sites) > 1 else ''}"
    runs = runs_of(site.layer for site in sites)
    layers = ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)
    return f"{count}: {kinds}" + (f" of layers {layers}" if layers else "")
