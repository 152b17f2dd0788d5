"""From syntax tree to spec: plain data with a place for each part of it, which Pydantic validates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lark import Token, Transformer, v_args
from lark.tree import Meta
from pydantic import ValidationError

from bishare_dsl.diagnostics import Loc, Problem, SourceMap, Span, SpecError
from bishare_dsl.diagnostics.codes import language as codes
from bishare_dsl.language.grammar import DEFAULTS
from bishare_dsl.language.syntax import Statement, span_of, unquoted
from bishare_dsl.spec import Spec

# Rules whose parts are fields of a model, and those whose parts are a list; of the rest the last part counts.
_FIELDS = {
    "param": ("name", "value"),
    "let": ("name", "selection"),
    "selection": ("include", "exclude"),
    "arm": ("values", "rank"),
    "range": ("first", "last"),
    "match": ("attribute", "pattern"),
    **dict.fromkeys(("compare", "sum", "product"), ("left", "op", "right")),
    "negation": ("negated",),
}
_LISTS = frozenset(
    [
        "key",
        "model",
        "freeze",
        "include",
        "exclude",
        "values",
        "set",
        "initial",
        "diagonal",
        "option",
    ]
)


@dataclass(slots=True)
class _Part:
    """A part of a spec as plain data, and where it and the parts of it stand."""

    value: Any
    span: Span | None
    parts: Mapping[Any, _Part] = field(default_factory=dict)

    def places(self, loc: Loc = ()) -> Iterator[tuple[Loc, Span]]:
        if self.span is not None:
            yield loc, self.span
        for name, part in self.parts.items():
            yield from part.places((*loc, name))


def _record(parts: Mapping[str, _Part], span: Span | None) -> _Part:
    return _Part({name: part.value for name, part in parts.items()}, span, parts)


def _row(parts: Sequence[_Part], span: Span | None) -> _Part:
    return _Part(tuple(part.value for part in parts), span, dict(enumerate(parts)))


def _span(meta: Meta) -> Span:
    return Span(meta.start_pos, meta.end_pos)


@v_args(meta=True)
class _Parts(Transformer[Token, _Part]):
    """Makes a part of each tree; the methods are named as rules of `share.lark`."""

    def __default_token__(self, token: Token) -> _Part:
        number = {"INT": int, "FLOAT": float}.get(token.type)
        return _Part(number(token) if number else unquoted(token), span_of(token))

    def __default__(self, data: str, children: list[_Part], meta: Meta) -> _Part:
        if data in _FIELDS:
            return _record(dict(zip(_FIELDS[data], children, strict=False)), _span(meta))
        return _row(children, _span(meta)) if data in _LISTS else children[-1]

    def negative(self, meta: Meta, parts: list[_Part]) -> _Part:
        return _Part(-parts[0].value, _span(meta))

    def any_of(self, meta: Meta, parts: list[_Part]) -> _Part:
        return _record({"any_of": _row(parts, None)}, _span(meta))

    def all_of(self, meta: Meta, parts: list[_Part]) -> _Part:
        return _record({"all_of": _row(parts, None)}, _span(meta))

    def member(self, meta: Meta, parts: list[_Part]) -> _Part:
        value, among = parts
        among = among if isinstance(among.value, tuple) else _row([among], None)
        return _record({"value": value, "among": among}, _span(meta))

    def call(self, meta: Meta, parts: list[_Part]) -> _Part:
        function, *arguments = parts
        return _record({"function": function, "arguments": _row(arguments, None)}, _span(meta))

    def arms(self, meta: Meta, parts: list[_Part]) -> _Part:
        subject, *arms = parts
        fields = {"subject": subject}
        if arms[-1].value.keys() == {"otherwise"}:
            fields["otherwise"] = arms.pop().parts["otherwise"]
        return _record({**fields, "arms": _row(arms, None)}, _span(meta))

    def otherwise(self, meta: Meta, parts: list[_Part]) -> _Part:
        return _record({"otherwise": parts[0]}, None)

    def init(self, meta: Meta, parts: list[_Part]) -> _Part:
        """Pair what a list names with what it gives: a start by role, an option by name."""
        return _record({pair.parts[0].value: pair.parts[1] for pair in parts}, _span(meta))

    gain = init

    def via(self, meta: Meta, parts: list[_Part]) -> _Part:
        name, *options = parts
        for option in options:
            # Where the name of an option stands, under its value.
            option.parts[1].parts = {**option.parts[1].parts, "name": option.parts[0]}
        assert name.span is not None
        span = Span(name.span.start, meta.end_pos)
        return _record({"transform": name, "options": self.init(meta, options)}, span)


def _settings(clauses: list[Statement], parts: _Parts) -> dict[str, _Part]:
    fields: dict[str, _Part] = {}
    keys: dict[str, _Part] = {}
    for clause in clauses:
        if clause.keyword == "start":
            fields["nonzero_start"] = _Part(True, clause.span)
        elif clause.keyword in ("A", "B"):
            keys[clause.keyword] = parts.transform(clause.words)
            fields.setdefault("per", _record(keys, clause.span))
        else:
            fields[clause.keyword] = parts.transform(clause.words)
    if keys:
        fields["per"] = _record(keys, fields["per"].span)
    return fields


def _spec(statements: list[Statement]) -> _Part:
    made: dict[str, list[_Part]] = {"param": [], "let": [], "share": [], "target": [], "spec": []}
    defaults: list[Statement] = []
    parts = _Parts()
    for statement in statements:
        keyword = statement.keyword
        if keyword not in made:
            defaults.append(statement)
            continue
        part = parts.transform(statement.words)
        if keyword in ("param", "let"):
            part.span = statement.span
        elif keyword == "share":
            # A problem with a share as a whole is shown at its head, not over all its lines.
            part = _record({"name": part, **_settings(statement.clauses, parts)}, statement.head)
        made[keyword].append(part)
    fields = {
        "name": made["spec"][0],
        "params": _row(made["param"], None),
        "lets": _row(made["let"], None),
        "target": made["target"][0],
        "defaults": _record(_settings(defaults, parts), None),
        "shares": _row(made["share"], None),
    }
    return _record(fields, statements[0].span)


def lower(statements: list[Statement], where: SourceMap) -> tuple[Spec, SourceMap]:
    """Make the spec of statements that have no errors; the places of its parts are in the texts of ``where``.

    Raises:
        SpecError: what Pydantic does not accept (BS141), each at its place.
    """
    part = _spec(statements)
    outdented = tuple(_outdented(statements, where))
    where = SourceMap(where.source, dict(part.places()), where.used, outdented)
    return validated(part.value, where), where


def _outdented(statements: list[Statement], where: SourceMap) -> Iterator[Loc]:
    """Find the settings of shares that begin a line, where the clauses before them do not."""
    shares = [statement for statement in statements if statement.keyword == "share"]
    for i, share in enumerate(shares):
        for clause in share.clauses:
            if where.source_of(clause.span).position(clause.start)[1] > 1:
                continue
            if clause is share.clauses[0] or clause.keyword not in DEFAULTS:
                break
            yield "shares", i, clause.keyword


def validated(data: object, where: SourceMap) -> Spec:
    """Make a spec of plain data.

    Raises:
        SpecError: what Pydantic does not accept (BS141), each at its place.
    """
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        problems: dict[Loc, Problem] = {}
        known = {loc[:length] for loc in where.spans for length in range(len(loc) + 1)}
        for detail in error.errors(include_url=False, include_context=False, include_input=False):
            loc: Loc = ()
            for name in detail["loc"]:
                # Pydantic's paths also name the model that it tried: no part of a spec is called so.
                loc = (*loc, name) if (*loc, name) in known else loc
            problems.setdefault(loc, codes.INVALID(why=detail["msg"], loc=loc))
        raise SpecError(problems.values(), where) from error
