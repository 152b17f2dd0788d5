"""From syntax tree to spec, noting for every part of the spec where in the text it stands."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import Loc, SourceMap, Span
from bishare_dsl.language import syntax as s

_Node = TypeVar("_Node", bound=m.Node)


def _make(cls: type[_Node], **values: Any) -> _Node:
    # The grammar has checked all that Pydantic would, and building Pydantic's validators takes longer
    # than reading the text. The tests validate what is made here.
    return cast(_Node, cls.model_construct(**values))


class Lowering:
    """Makes the spec; ``spans`` fills on the way, with Pydantic's own path of each part."""

    def __init__(self) -> None:
        self.spans: dict[Loc, Span] = {}

    def spec(self, statements: list[s.Statement | s.Clause]) -> m.Spec:
        params: list[m.Param] = []
        lets: list[m.Let] = []
        shares: list[m.Share] = []
        defaults: list[s.Clause] = []
        name, target = "", None
        for statement in statements:
            if isinstance(statement, s.Clause):
                defaults.append(statement)
                continue
            value = statement.value
            match statement.keyword.text:
                case "spec":
                    name = self.name(statement.name, ("name",))
                    self.spans[()] = statement.span
                case "param":
                    loc: Loc = ("params", len(params))
                    self.spans[loc] = statement.span
                    params.append(
                        _make(
                            m.Param,
                            name=self.name(statement.name, (*loc, "name")),
                            value=value.value
                            if isinstance(value, s.Number)
                            else getattr(value, "text", ""),
                        )
                    )
                    if value is not None:
                        self.spans[(*loc, "value")] = value.span
                case "let":
                    loc = ("lets", len(lets))
                    self.spans[loc] = statement.span
                    let_name = self.name(statement.name, (*loc, "name"))
                    selection = self.selection(value, (*loc, "selection"))
                    lets.append(_make(m.Let, name=let_name, selection=selection))
                case "target":
                    target = self.selection(value, ("target",))
                case "share":
                    shares.append(self.share(statement, ("shares", len(shares))))
        return _make(
            m.Spec,
            name=name,
            params=tuple(params),
            lets=tuple(lets),
            target=target,
            defaults=_make(m.Settings, **self.settings(defaults, ("defaults",))),
            shares=tuple(shares),
        )

    def name(self, name: s.Name | None, loc: Loc) -> str:
        assert name is not None
        self.spans[loc] = name.span
        return name.text

    def share(self, statement: s.Statement, loc: Loc) -> m.Share:
        assert statement.name is not None
        # A problem with a share as a whole is shown at its head, not over all its lines.
        self.spans[loc] = Span(statement.start, statement.name.end)
        values: dict[str, Any] = {
            "name": self.name(statement.name, (*loc, "name")),
            **self.settings(statement.clauses, loc),
        }
        keys: dict[str, tuple[m.Expression, ...]] = {}
        for clause in statement.clauses:
            keyword, value = clause.keyword.text, clause.value
            at = (*loc, keyword)
            if keyword == "where":
                values["where"] = self.selection(value, at)
            elif keyword == "per":
                values["per"] = self.key(clause, at)
            elif keyword in ("A", "B"):
                keys[keyword] = self.key(clause, (*loc, "per", keyword))
                self.spans.setdefault((*loc, "per"), clause.span)
            elif keyword == "rank" and isinstance(value, s.Cases):
                values["rank"] = self.cases(value, at)
            elif keyword == "rank":
                values["rank"] = self.expression(value, at)
            elif keyword == "via":
                assert isinstance(value, s.Transform)
                self.spans[at] = value.span
                name = self.name(value.name, (*at, "transform"))
                options = {
                    pair.name.text: self.expression(pair.value, (*at, "options", pair.name.text))
                    for pair in value.options
                }
                for pair in value.options:
                    self.spans[*at, "options", pair.name.text, "name"] = pair.name.span
                values["via"] = _make(m.Via, transform=name, options=options)
            elif keyword == "freeze":
                assert isinstance(value, list)
                self.spans[at] = clause.span
                roles = [role for role in value if isinstance(role, s.Name)]
                values["freeze"] = tuple(self.name(r, (*at, k)) for k, r in enumerate(roles))
            elif keyword == "gain":
                values["gain"] = _make(m.Gain, **self.starts(clause, at))
            elif keyword == "start":
                values["nonzero_start"] = True
                self.spans[(*loc, "nonzero_start")] = clause.span
        if keys:
            values["per"] = _make(m.Keys, **keys)
        return _make(m.Share, **values)

    def key(self, clause: s.Clause, loc: Loc) -> tuple[m.Expression, ...]:
        assert isinstance(clause.value, list)
        nodes = [node for node in clause.value if not isinstance(node, s.Pair)]
        # No expression: the last word of the clause is `model`.
        start = nodes[0].start if nodes else clause.end - len("model")
        self.spans[loc] = Span(start, clause.end)
        return self.expressions(nodes, loc)

    def starts(self, clause: s.Clause, loc: Loc) -> dict[str, m.Expression]:
        """How the factors of an `init` start, or the diagonals of a `gain`."""
        assert isinstance(clause.value, list)
        self.spans[loc] = clause.span
        return {
            pair.name.text: self.expression(pair.value, (*loc, pair.name.text))
            for pair in clause.value
            if isinstance(pair, s.Pair)
        }

    def settings(self, clauses: list[s.Clause], loc: Loc) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for clause in clauses:
            keyword, value = clause.keyword.text, clause.value
            if keyword in ("alpha", "scale", "dropout"):
                values[keyword] = self.expression(value, (*loc, keyword))
            elif keyword == "init":
                values["init"] = _make(m.Init, **self.starts(clause, (*loc, "init")))
        return values

    def selection(self, choice: object, loc: Loc) -> m.Selection:
        assert isinstance(choice, s.Choice)
        self.spans[loc] = choice.span
        return _make(
            m.Selection,
            include=self.expressions(choice.included, (*loc, "include")),
            exclude=self.expressions(choice.excluded, (*loc, "exclude")),
        )

    def cases(self, cases: s.Cases, loc: Loc) -> m.RankMatch:
        self.spans[loc] = cases.span
        subject = self.expression(cases.subject, (*loc, "subject"))
        arms: list[m.Arm] = []
        otherwise = None
        for case in cases.cases:
            if not case.items:
                otherwise = self.expression(case.value, (*loc, "otherwise"))
                continue
            at = (*loc, "arms", len(arms))
            self.spans[at] = case.span
            values = tuple(self.item(item, (*at, "values", k)) for k, item in enumerate(case.items))
            arms.append(
                _make(m.Arm, values=values, rank=self.expression(case.value, (*at, "rank")))
            )
        return _make(m.RankMatch, subject=subject, arms=tuple(arms), otherwise=otherwise)

    def item(self, item: s.Expr | s.Interval, loc: Loc) -> m.Range | m.Expression:
        if not isinstance(item, s.Interval):
            return self.expression(item, loc)
        self.spans[loc] = item.span
        return _make(
            m.Range,
            first=self.expression(item.first, (*loc, "first")),
            last=self.expression(item.last, (*loc, "last")),
        )

    def expressions(self, nodes: list[s.Expr], loc: Loc) -> tuple[m.Expression, ...]:
        return tuple(self.expression(node, (*loc, k)) for k, node in enumerate(nodes))

    def expression(self, node: object, loc: Loc) -> m.Expression:
        if isinstance(node, s.Group):
            return self.expression(node.inner, loc)
        assert isinstance(node, s.Node)
        self.spans[loc] = node.span
        match node:
            case s.Number(value=value):
                return value
            case s.Name(text=text):
                return _make(m.Ref, ref=text)
            case s.Glob(attribute=attribute, pattern=pattern):
                self.spans[(*loc, "pattern")] = pattern.span
                return _make(m.Match, attribute=attribute, pattern=pattern.text)
            case s.Membership(value=value, items=items):
                return _make(
                    m.Member,
                    value=self.expression(value, (*loc, "value")),
                    among=tuple(
                        self.item(item, (*loc, "among", k)) for k, item in enumerate(items)
                    ),
                )
            case s.Operation(operator="and", operands=operands):
                return _make(m.And, all_of=self.expressions(operands, (*loc, "all_of")))
            case s.Operation(operator="or", operands=operands):
                return _make(m.Or, any_of=self.expressions(operands, (*loc, "any_of")))
            case s.Operation(operator="not", operands=[operand]):
                return _make(m.Not, negated=self.expression(operand, (*loc, "negated")))
            case s.Operation(operator="sqrt", operands=[operand]):
                return _make(m.Sqrt, sqrt=self.expression(operand, (*loc, "sqrt")))
            case s.Operation(operator=operator, operands=[left, right]):
                sides: dict[str, Any] = {
                    "left": self.expression(left, (*loc, "left")),
                    "right": self.expression(right, (*loc, "right")),
                }
                if operator[0] in "=!<>":
                    return _make(m.Compare, op=operator, **sides)
                return _make(m.Binary, op=operator, **sides)
        raise AssertionError(node)


def lower(statements: list[s.Statement | s.Clause], where: SourceMap) -> tuple[m.Spec, SourceMap]:
    """The spec of statements that have no errors, and the places of its parts in the texts of ``where``."""
    lowering = Lowering()
    spec = lowering.spec(statements)
    return spec, SourceMap(where.source, lowering.spans, where.used)
