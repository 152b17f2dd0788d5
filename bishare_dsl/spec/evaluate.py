"""Evaluate expressions to numbers, truth values and keys."""

from __future__ import annotations

import fnmatch
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import lru_cache
from typing import Any

from bishare_dsl.diagnostics import Loc, Problem
from bishare_dsl.diagnostics.codes import spec as codes
from bishare_dsl.diagnostics.codes.plan import NO_ARM
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.spec import expression as m
from bishare_dsl.spec.facts import Fault, NamesWithSign, NotANumber, UnknownName, WordsOrdered

Value = int | float | str | bool

_OPERATORS: dict[str, Callable[[float, float], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": lambda base, exponent: _power(base, exponent),
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FUNCTIONS: dict[str, Callable[..., int | float]] = {
    "abs": abs,
    "floor": math.floor,
    "max": max,
    "min": min,
    "sqrt": math.sqrt,
}


def in_key(loc: Loc) -> bool:
    """Return whether a location in a spec is in a key."""
    return not {"per", "keys", "references"}.isdisjoint(loc)


class EvaluationError(Exception):
    """An expression without a value, with the problem to report."""

    def __init__(self, problem: Problem):
        super().__init__(problem.message)
        self.problem = problem


class Scope(Record):
    """The meaning of bare names at one site.

    ``values`` holds params, the site's attributes and ``rank``. ``lets`` says whether each let selects
    the site; any other name in a condition is a kind. ``named`` holds the lets that name a value, with
    their locations. ``modules`` are the scopes of a share's modules, where they are known. ``layers``
    resolves negative layers. Globs skip a site that is ``by_name``.
    """

    values: Mapping[str, Value]
    lets: dict[str, bool] = field(default_factory=dict)
    layers: int = 0
    by_name: bool = False
    named: dict[str, tuple[m.Expression, Loc]] = field(default_factory=dict)
    modules: Sequence[Scope] = ()

    @property
    def where(self) -> str:
        """Return the end of a sentence that names the layer, or an empty text outside of blocks."""
        layer = self.values.get("layer", "none")
        return "" if layer == "none" else f" in layer {layer}"

    def value(self, expression: m.Expression, loc: Loc = ()) -> Value:
        """Evaluate an expression. A name without a meaning here is a plain word.

        Raises:
            EvaluationError: BS210, for arithmetic on words, a division by zero, a root of a negative
            number, a
                number that is not finite or beyond 2**53 (where floats cannot represent all whole
                numbers), or a pattern without a site.
        """
        match expression:
            case int() | float():
                return _bounded(expression, loc)
            case m.Ref(ref=name):
                if name in self.values:
                    value = self.values[name]
                    return value if isinstance(value, str) else _bounded(value, loc)
                if name in self.named:
                    return self.value(*self.named[name])
                return self.lets.get(name, name)
            case m.Binary(op=op, left=left, right=right):
                lhs = self.number(left, (*loc, "left"))
                rhs = self.number(right, (*loc, "right"))
                if op == "**" and lhs < 0 and rhs != int(rhs):
                    raise EvaluationError(codes.NO_VALUE(loc=loc, why=f"{lhs} has no root"))
                try:
                    return _bounded(_OPERATORS[op](lhs, rhs), loc)
                except ZeroDivisionError as error:
                    why = f"it divides by zero{self.where}"
                    fact = Fault.KEY_DIVIDES_BY_ZERO if in_key(loc) else Fault.DIVIDES_BY_ZERO
                    raise EvaluationError(codes.NO_VALUE(loc=loc, why=why, fact=fact)) from error
            case m.Call(function="largest", arguments=(argument,)):
                return self._largest(argument, loc)
            case m.Call(function="sparse"):
                why = "`sparse` says how a tensor starts, after `init`"
                raise EvaluationError(codes.NO_VALUE(loc=loc, why=why))
            case m.Call(function=function, arguments=arguments):
                numbers = [self.number(x, (*loc, "arguments", i)) for i, x in enumerate(arguments)]
                if function == "sqrt" and numbers[0] < 0:
                    raise EvaluationError(codes.NO_VALUE(loc=loc, why=f"{numbers[0]} has no root"))
                return _FUNCTIONS[function](*numbers)
            case m.If(then=then, condition=condition, otherwise=otherwise):
                if self.holds(condition, (*loc, "condition")):
                    return self.value(then, (*loc, "then"))
                return self.value(otherwise, (*loc, "otherwise"))
            case m.Cases():
                return self.value(*self.result(expression, loc))
            case _:
                return self.holds(expression, loc)

    def number(self, expression: m.Expression, loc: Loc = ()) -> int | float:
        """Evaluate an expression that must be a number. A let is 1 if it selects the site, else 0.

        Raises:
            EvaluationError: see `value`; or BS201 for an undeclared name.
        """
        if type(expression) is int:
            return _bounded(expression, loc)
        if isinstance(expression, m.Cases):
            return self.number(*self.result(expression, loc))
        value = self.value(expression, loc)
        # Arithmetic may use a condition: `8 * (layer > 15)`.
        if isinstance(value, bool) and (
            isinstance(expression, m.Ref) or loc[-1:] in (("left",), ("right",))
        ):
            return int(value)
        if isinstance(value, bool | str):
            ref = expression.ref if isinstance(expression, m.Ref) else None
            if ref is not None and ref not in self.values:
                raise EvaluationError(self._no_number(ref, loc))
            why = f"`{ref or value}` is not a number"
            fact = NotANumber(str(value))
            raise EvaluationError(codes.NO_VALUE(loc=loc, why=why, fact=fact))
        return value

    def result(self, cases: m.Cases, loc: Loc = ()) -> tuple[m.Expression, Loc]:
        """Return the expression that a match chooses, and its location.

        Raises:
            EvaluationError: no arm has the value, and there is no ``else`` (BS307); or see `value`.
        """
        subject = self.value(cases.subject, (*loc, "subject"))
        for i, arm in enumerate(cases.arms):
            place: Loc = (*loc, "arms", i)
            for j, item in enumerate(arm.values):
                if self.includes(item, subject, cases.subject, (*place, "values", j)):
                    return arm.result, (*place, "result")
        if cases.otherwise is None:
            raise EvaluationError(NO_ARM(site=self.values.get("path", subject), loc=loc))
        return cases.otherwise, (*loc, "otherwise")

    def _largest(self, argument: m.Expression, loc: Loc) -> int | float:
        """Return the largest value of an expression at a module of the share.

        Raises:
            EvaluationError: BS210, as no share is known here, or the expression has no value at a module.
        """
        if not self.modules:
            why = "`largest` is over the modules of a share, which are not known in this place"
            raise EvaluationError(codes.NO_VALUE(loc=loc, why=why, fact=Fault.NO_SHARE))
        return max(scope.number(argument, (*loc, "arguments", 0)) for scope in self.modules)

    def _no_number(self, name: str, loc: Loc) -> Problem:
        """Return the problem of a name that stands for no number."""
        if name in m.ATTRIBUTES:
            self.attribute(name, loc)
        numbers = [name_of for name_of, v in self.values.items() if not isinstance(v, str)]
        if in_key(loc) or {"rank", "scale", "dropout"} & {*loc}:
            numbers += ["layer", "layers", "in", "out", "expert"]
        fact = UnknownName(name, "rank" if "rank" in loc else "number", frozenset(numbers))
        return codes.UNKNOWN_NAME(name=name, loc=loc, fact=fact)

    def holds(self, predicate: m.Condition, loc: Loc = ()) -> bool:
        """Return whether a predicate is true, or a selection selects the site.

        A bare name is a let, or else a kind.
        """
        match predicate:
            case m.Selection(include=include, exclude=exclude):
                included = self._find(True, include, (*loc, "include"))
                return included and not self._find(True, exclude, (*loc, "exclude"))
            case m.Ref(ref=name):
                if name in self.lets:
                    return self.lets[name]
                if name in self.named:
                    return self._named_condition(name, loc)
                return self.attribute("kind", loc) == name
            case m.Match(attribute=attribute, pattern=pattern):
                if predicate.is_glob and self.by_name:
                    return False  # A module outside of blocks is selected by name only.
                return _glob(pattern).fullmatch(str(self.attribute(attribute, loc))) is not None
            case m.And(all_of=parts):
                return not self._find(False, parts, (*loc, "all_of"))
            case m.Or(any_of=parts):
                return self._find(True, parts, (*loc, "any_of"))
            case m.Not(negated=inner):
                return not self.holds(inner, (*loc, "negated"))
            case m.Member(value=subject, among=among):
                value = self.value(subject, (*loc, "value"))
                for i, item in enumerate(among):
                    if self.includes(item, value, subject, (*loc, "among", i)):
                        return True
                return False
            case m.Compare(op=op, left=left, right=right):
                return self._compare(op, left, right, loc)
            case m.If(then=chosen, condition=condition, otherwise=otherwise):
                if self.holds(condition, (*loc, "condition")):
                    return self.holds(chosen, (*loc, "then"))
                return self.holds(otherwise, (*loc, "otherwise"))
            case m.Cases():
                return self.holds(*self.result(predicate, loc))
            case _:
                if names := m.joined_names(predicate):
                    raise EvaluationError(self._a_list(predicate, names, loc))
                why = "a number is neither true nor false"
                fact = Fault.NO_CONDITION_IN_LET if loc[:1] == ("lets",) else Fault.NO_CONDITION
                raise EvaluationError(codes.NO_VALUE(loc=loc, why=why, fact=fact))

    def _named_condition(self, name: str, loc: Loc) -> bool:
        """Return the value of a let that must be a condition.

        Raises:
            EvaluationError: BS210, as it is a number or a word.
        """
        value = self.value(*self.named[name])
        if isinstance(value, bool):
            return value
        why = f"`{name}` is {value} here, which is neither true nor false"
        raise EvaluationError(codes.NO_VALUE(loc=loc, why=why, fact=Fault.NO_CONDITION))

    def _a_list(self, part: m.Expression, names: list[str], loc: Loc) -> Problem:
        """Return the problem of names that are joined by the sign of an operation."""
        op = part.op if isinstance(part, m.Binary) else ""
        why = f"`{op}` computes with numbers, and `{names[-1]}` is a name"
        return codes.NO_VALUE(loc=loc, why=why, fact=NamesWithSign(tuple(names)))

    def attribute(self, name: str, loc: Loc) -> Value:
        """Return an attribute of the site.

        Raises:
            EvaluationError: BS210, without a site.
        """
        if name not in self.values:
            why = f"it is about a module, whose `{name}` is not known in this place"
            raise EvaluationError(codes.NO_VALUE(loc=loc, why=why, fact=Fault.NO_MODULE))
        return self.values[name]

    def includes(
        self, item: m.Range | m.Expression, value: Value, subject: m.Expression, loc: Loc = ()
    ) -> bool:
        """Return whether ``value`` (of ``subject``) equals ``item`` or is in its range, or whether
        ``item`` is a let that selects the site."""
        if isinstance(item, m.Range):
            first, last = self.bounds(item, subject, loc)
            return not isinstance(value, str) and first <= value <= last
        if isinstance(item, m.Ref) and item.ref in self.lets and item.ref not in self.values:
            return self.lets[item.ref]
        return self._layer(subject, self.value(item, loc)) == value

    def bounds(self, item: m.Range, subject: m.Expression, loc: Loc = ()) -> tuple[float, float]:
        """Evaluate the ends of a range, both included. An open range of layers ends at the last layer."""
        first = -math.inf
        last = math.inf
        if _is_layer(subject):
            first = 0
            last = self.layers - 1
        if item.first is not None:
            first = float(self._layer(subject, self.number(item.first, (*loc, "first"))))
        if item.last is not None:
            last = float(self._layer(subject, self.number(item.last, (*loc, "last"))))
        return first, last

    def _find(self, truth: bool, parts: tuple[m.Expression, ...], loc: Loc) -> bool:
        """Return whether some part has this truth value."""
        return any(self.holds(part, (*loc, i)) is truth for i, part in enumerate(parts))

    def _compare(self, op: str, left: m.Expression, right: m.Expression, loc: Loc) -> bool:
        lhs = self._layer(right, self.value(left, (*loc, "left")))
        rhs = self._layer(left, self.value(right, (*loc, "right")))
        if isinstance(lhs, str) or isinstance(rhs, str):
            if op not in ("==", "!="):
                fact = WordsOrdered(op)
                raise EvaluationError(codes.NO_VALUE(loc=loc, why="words have no order", fact=fact))
            return (lhs == rhs) == (op == "==")
        return bool(_OPERATORS[op](lhs, rhs))

    def _layer(self, subject: m.Expression, value: Value) -> Value:
        """Convert a negative number that is compared with ``layer``, which counts from the last layer."""
        if not isinstance(value, str) and value < 0 and _is_layer(subject):
            return value + self.layers
        return value


def _is_layer(part: m.Expression) -> bool:
    return isinstance(part, m.Ref) and part.ref == "layer"


def _power(base: float, exponent: float) -> float:
    """Raise a number to a power. A power that no float can hold is infinite, and is not computed."""
    if base != 0 and abs(exponent * math.log2(abs(base))) > 1000:
        return math.inf
    result: float = base**exponent
    return result


def _bounded(number: float, loc: Loc) -> int | float:
    # Larger whole numbers are not exact in floats; smaller numbers are 0 in float32, so a term would vanish.
    if number != 0 and not 2**-126 <= abs(number) <= 2**53:
        why = "a number is out of range"
        raise EvaluationError(codes.NO_VALUE(loc=loc, why=why, fact=Fault.OUT_OF_RANGE))
    return number


@lru_cache(maxsize=256)
def _glob(pattern: str) -> re.Pattern[str]:
    """Compile a glob, in which only ``*`` (any characters) and ``?`` (one character) are special."""
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))
