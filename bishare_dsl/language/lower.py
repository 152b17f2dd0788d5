"""Convert a syntax tree to plain data with locations, which Pydantic validates as a spec."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any

from lark import Token, Transformer, v_args
from lark.tree import Meta
from pydantic import ValidationError

from bishare_dsl.diagnostics import Loc, Problem, SourceMap, Span, SpecError
from bishare_dsl.diagnostics.codes import language as codes
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.language.grammar import DEFAULTS
from bishare_dsl.language.syntax import Statement, span_of, unquoted
from bishare_dsl.spec import MAGNITUDE, Spec

# Rules of `share.lark` by their result: the fields of a model, a list, or fields that a list names. Any
# other rule results in its last part, or in true.
_FIELDS = {
    "param": ("name", "value"),
    "let": ("name", "selection"),
    "selection": ("include", "exclude"),
    "applied": ("transform", "options"),
    "softmax": (),
    "top": ("top",),
    "arm": ("values", "result"),
    "otherwise": ("otherwise",),
    "range": ("first", "last"),
    "range_from": ("first",),
    "range_to": ("last",),
    "choice": ("then", "condition", "otherwise"),
    "match": ("attribute", "pattern"),
    "call": ("function", "arguments"),
    "member": ("value", "among"),
    "negation": ("negated",),
    **dict.fromkeys(("compare", "sum", "product", "power"), ("left", "op", "right")),
}
_LISTS = (
    *("key", "model", "freeze", "include", "exclude", "values", "set", "single", "arguments"),
    *("initial", "diagonal", "option"),
)
_NAMED = ("init", "gain", "options")
_TERMS = ("share", MAGNITUDE)


class _Part(Record, frozen=False):
    """A part of a spec as plain data, with its span and the spans of its parts."""

    value: Any
    span: Span | None
    parts: Mapping[Any, _Part] = field(default_factory=dict)

    def places(self, loc: Loc = ()) -> Iterator[tuple[Loc, Span]]:
        if self.span is not None:
            yield loc, self.span
        for name, part in self.parts.items():
            yield from part.places((*loc, name))


def _record(parts: Mapping[str, _Part], span: Span | None = None) -> _Part:
    return _Part({name: part.value for name, part in parts.items()}, span, parts)


def _row(parts: Sequence[_Part], span: Span | None = None) -> _Part:
    return _Part(tuple(part.value for part in parts), span, dict(enumerate(parts)))


@v_args(meta=True)
class _Parts(Transformer[Token, _Part]):
    """Convert each tree to a part."""

    def __default_token__(self, token: Token) -> _Part:
        number = {"INT": int, "FLOAT": float}.get(token.type)
        return _Part(number(token) if number else unquoted(token), span_of(token))

    def __default__(self, data: str, children: list[_Part], meta: Meta) -> _Part:
        span = Span(meta.start_pos, meta.end_pos)
        if data in _FIELDS:
            return _record(dict(zip(_FIELDS[data], children, strict=False)), span)
        if data in _LISTS:
            return _row(children, span)
        if data in _NAMED:
            for pair in children:  # Store the span of the name with its value.
                pair.parts[1].parts = {**pair.parts[1].parts, "name": pair.parts[0]}
            return _record({pair.parts[0].value: pair.parts[1] for pair in children}, span)
        if data in ("any_of", "all_of"):
            return _record({data: _row(children)}, span)
        return children[-1] if children else _Part(True, span)

    def named(self, meta: Meta, parts: list[_Part]) -> _Part:
        step, name = parts
        return _record({**step.parts, "name": name}, Span(meta.start_pos, meta.end_pos))

    def gated(self, meta: Meta, parts: list[_Part]) -> _Part:
        step, gate = parts
        return _record({**step.parts, "gate": gate}, Span(meta.start_pos, meta.end_pos))

    def gate(self, meta: Meta, parts: list[_Part]) -> _Part:
        fields = dict(parts[0].parts)
        if len(parts) == 2:
            fields["of"] = parts[1]
        return _record(fields, Span(meta.start_pos, meta.end_pos))

    def signal(self, meta: Meta, parts: list[_Part]) -> _Part:
        return _Part("A x" if parts else "x", Span(meta.start_pos, meta.end_pos))

    def chain(self, meta: Meta, parts: list[_Part]) -> _Part:
        first, *later = parts
        return _record({**first.parts, "then": _row(later)}, Span(meta.start_pos, meta.end_pos))

    def places(self, meta: Meta, parts: list[_Part]) -> _Part:
        steps = {place.parts[0].value: place.parts[1] for place in parts}
        return _record(steps, Span(meta.start_pos, meta.end_pos))

    def placed(self, meta: Meta, parts: list[_Part]) -> _Part:
        place, *steps = parts
        return _row([place, _row(steps)], Span(meta.start_pos, meta.end_pos))

    def role_is(self, meta: Meta, parts: list[_Part]) -> _Part:
        fields = dict(parts[-1].parts)
        if len(parts) == 3:
            fields["key"] = parts[1]
        return _record(fields, Span(meta.start_pos, meta.end_pos))

    def reference(self, meta: Meta, parts: list[_Part]) -> _Part:
        *share, role = parts
        fields = {"role": role}
        if share:
            fields["share"] = share[0]
        return _record(fields, Span(meta.start_pos, meta.end_pos))

    def minus(self, meta: Meta, parts: list[_Part]) -> _Part:
        span = Span(meta.start_pos, meta.end_pos)
        if isinstance(parts[0].value, int | float):
            return _Part(-parts[0].value, span)
        fields = {"op": _Part("-", None), "left": _Part(0, None), "right": parts[0]}
        return _record(fields, span)

    def arms(self, meta: Meta, parts: list[_Part]) -> _Part:
        subject, *arms = parts
        otherwise = arms.pop().parts if "otherwise" in arms[-1].parts else {}
        fields = {"subject": subject, "arms": _row(arms), **otherwise}
        return _record(fields, Span(meta.start_pos, meta.end_pos))


def _settings(clauses: Iterable[Statement]) -> dict[str, _Part]:
    fields: dict[str, _Part] = {}
    for clause in clauses:
        part = _Parts().transform(clause.words)
        name = str(clause.keyword)
        if clause.role is not None:
            part.parts = {**part.parts, "name": _Part(clause.role, span_of(clause.name_token))}
            name = "references" if clause.words.data == "role_is" else "keys"
            others = fields.get(name, _record({}, clause.span))
            part = _record({**others.parts, clause.role: part}, others.span)
        fields["nonzero_start" if name == "start" else name] = part
    return fields


def _part(statement: Statement) -> _Part:
    part = _Parts().transform(statement.words)
    if statement.keyword in _TERMS:
        fields = {"name": part, **_settings(statement.clauses)}
        if statement.keyword == MAGNITUDE:
            said = fields.pop("plain", None)
            options = {"plain": _Part(1, said.span)} if said else {}
            via = {"transform": _Part(MAGNITUDE, None), "options": _record(options)}
            fields |= {"rank": _Part(1, None), "via": _record(via, said.span if said else None)}
        # A problem of a whole share is shown at its head only.
        return _record(fields, statement.head)
    if statement.keyword in ("param", "let"):
        part.span = statement.span
    return part


def _spec(statements: list[Statement]) -> _Part:
    def rows(*keywords: str) -> _Part:
        return _row([_part(s) for s in statements if s.keyword in keywords])

    selections = ((word, rows(word).parts.get(0)) for word in ("target", "train"))
    fields = {
        "name": _part(statements[0]),
        "params": rows("param"),
        "lets": rows("let"),
        **{word: part for word, part in selections if part is not None},
        "defaults": _record(_settings(s for s in statements if s.keyword in DEFAULTS)),
        "shares": rows(*_TERMS),
    }
    return _record(fields, statements[0].span)


def lower(statements: list[Statement], where: SourceMap) -> tuple[Spec, SourceMap]:
    """Build the spec of statements without errors, and locate its parts in the texts of ``where``.

    Raises:
        SpecError: parts that Pydantic rejects (BS141), each with its position.
    """
    part = _spec(statements)
    outdented = tuple(_outdented(statements, where))
    where = SourceMap(where.source, dict(part.places()), where.used, outdented)
    return validated(part.value, where), where


def _outdented(statements: list[Statement], where: SourceMap) -> Iterator[Loc]:
    """Yield settings of shares that begin a line although the clauses before them do not."""
    shares = [statement for statement in statements if statement.keyword in _TERMS]
    for i, share in enumerate(shares):
        for clause in share.clauses:
            if where.source_of(clause.span).position(clause.start)[1] > 1:
                continue
            if clause is share.clauses[0] or clause.keyword not in DEFAULTS:
                break
            yield "shares", i, str(clause.keyword)


def validated(data: object, where: SourceMap) -> Spec:
    """Build a spec from plain data.

    Raises:
        SpecError: parts that Pydantic rejects (BS141), each with its position.
    """
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        problems: dict[Loc, Problem] = {}
        prefixes = {loc[:length] for loc in where.spans for length in range(len(loc) + 1)}
        for detail in error.errors(include_url=False, include_context=False, include_input=False):
            loc: Loc = ()
            for name in detail["loc"]:
                # Drop the names of models that Pydantic adds to its paths.
                loc = (*loc, name) if (*loc, name) in prefixes else loc
            problems.setdefault(loc, codes.INVALID(why=detail["msg"], loc=loc))
        raise SpecError(problems.values(), where) from error
