"""From a rule of the grammar and the parts that fit it to a node. The names are those of `share.lark`."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import isfinite
from typing import Any

from bishare_dsl.diagnostics import Problem
from bishare_dsl.diagnostics.codes import language as codes
from bishare_dsl.language import syntax as s

Part = Any
"""A `Token`, a node, or what `build` gave for a rule inside: the parser's stack holds all of them."""

_LARGEST = 2**63 - 1


class Builder:
    """Makes nodes, and collects what is wrong with single words."""

    def __init__(self, report: Callable[[Problem], None]) -> None:
        self._report = report

    def __call__(self, rule: str, parts: list[Part]) -> Part:
        """The node of a rule."""
        start, end = (parts[0].start, parts[-1].end) if parts else (0, 0)
        first: Part = parts[0] if parts else None
        match rule:
            case "start":
                return [part for part in parts if isinstance(part, s.Statement | s.Clause)]
            case "header" | "use":
                return s.Statement(start, end, first, self._name(parts[1]))
            case "param":
                value = parts[3] if isinstance(parts[3], s.Number) else self._name(parts[3])
                return s.Statement(start, end, first, self._name(parts[1]), value)
            case "let":
                return s.Statement(start, end, first, self._name(parts[1]), parts[3])
            case "target":
                return s.Statement(start, end, first, None, parts[1])
            case "share":
                return s.Statement(start, end, first, self._name(parts[1]), None, parts[2:])
            case "where" | "rank" | "alpha" | "scale" | "dropout":
                return s.Clause(start, end, first, parts[1])
            case "replaced" | "replaced_share":
                parts[1].start, parts[1].replaces = start, True
                return parts[1]
            case "per" | "factor_per" | "init" | "freeze" | "gain":
                return s.Clause(start, end, first, _nodes(parts))
            case "nonzero":
                return s.Clause(start, end, first, None)
            case "via":
                name = self._name(parts[1])
                return s.Clause(
                    start, end, first, s.Transform(name.start, end, name, _nodes(parts[2:]))
                )
            case "selection":
                excluded = [part for part in parts if isinstance(part, s.Choice)]
                included = [part for part in _nodes(parts) if not isinstance(part, s.Choice)]
                return s.Choice(start, end, included, [part.included[0] for part in excluded])
            case "excluded":
                return s.Choice(start, end, [first], [])
            case "option":
                return s.Pair(start, end, self._name(first), parts[2])
            case "role":
                return self._name(first)
            case "initial":
                return s.Pair(start, end, s.Name(first.start, first.end, first.text), parts[1])
            case "diagonal":
                return s.Pair(start, end, s.Name(first.start, first.end, first.text), parts[2])
            case "arms":
                return s.Cases(start, end, parts[1], [p for p in parts if isinstance(p, s.Case)])
            case "arm":
                return s.Case(start, end, _nodes(parts[:-1]), parts[-1])
            case "otherwise":
                return s.Case(start, end, [], parts[2])
            case "any_of" | "all_of":
                return s.Operation(start, end, parts[1].text, _nodes(parts))
            case "negation":
                return s.Operation(start, end, "not", [parts[1]])
            case "sqrt":
                return s.Operation(start, end, "sqrt", [parts[2]])
            case "compare" | "sum" | "product":
                return s.Operation(start, end, parts[1].text, [first, parts[2]])
            case "member":
                if isinstance(parts[2], s.Token):
                    parts[2].joins, parts[-1].joins = "right", "left"
                return s.Membership(start, end, first, _nodes(parts[2:]))
            case "range":
                return s.Interval(start, end, first, parts[2])
            case "group":
                return s.Group(start, end, parts[1])
            case "match":
                return s.Glob(start, end, first.text, self._name(parts[1]))
            case "word":
                return self._name(first)
            case "number":
                return self._number(first, 1, start)
            case "negative":
                first.joins = "right"
                return self._number(parts[1], -1, start)
        raise AssertionError(rule)

    def _name(self, token: s.Token) -> s.Name:
        text = token.text
        if token.kind == "STRING":
            try:
                text = json.loads(text, strict=False)
                text.encode()
            except ValueError:
                self._report(codes.BAD_ESCAPE(span=token.span))
        return s.Name(token.start, token.end, text)

    def _number(self, token: s.Token, sign: int, start: int) -> s.Number:
        value: int | float = 0
        if token.kind == "FLOAT":
            value = sign * float(token.text)
            # What is written is not zero: that it can only be kept as zero is as wrong as infinity.
            nonzero = token.text.lower().partition("e")[0].strip("0.") != ""
            fits = isfinite(value) and (value != 0 or not nonzero)
        else:
            digits = token.text.lstrip("0")
            # Longer ones are not even converted: that takes Python quadratic time.
            fits = len(digits) < 20
            value = sign * int(digits or "0") if fits else 0
            fits = fits and -_LARGEST - 1 <= value <= _LARGEST
        if not fits:
            text = token.text if len(token.text) <= 24 else f"{token.text[:20]}..."
            self._report(codes.NUMBER_RANGE(span=token.span, text=text))
        return s.Number(start, token.end, value)


def _nodes(parts: list[Part]) -> list[Part]:
    return [part for part in parts if isinstance(part, s.Node)]
