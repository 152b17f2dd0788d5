"""Evaluate conditions for all sites, once per group of equivalent sites."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from contextlib import suppress

from bishare_dsl.diagnostics import Loc
from bishare_dsl.spec import expression as m
from bishare_dsl.spec.evaluate import EvaluationError, Scope
from bishare_dsl.spec.spec import Let
from bishare_dsl.spec.walk import Purpose, names_read


class SiteSets:
    """The sites of a model, or its parameters, each with a scope; sets contain their indices.

    The constructor adds the ``lets`` of the spec to the scopes.
    """

    def __init__(self, scopes: Sequence[Scope], lets: Iterable[Let]) -> None:
        self.scopes = scopes
        self.all: Set[int] = frozenset(range(len(scopes)))
        # By the id of a condition, which is kept so that no other gets its id.
        self._partitions: dict[int, tuple[m.Condition, Set[int], Set[int]]] = {}
        self._groups_by_names: dict[frozenset[str], list[list[int]]] = {}
        self._lets: dict[str, Set[int]] = {}
        for let in lets:  # In order: a let may name those above it, and no other.
            selected = self._lets[let.name] = self.partition(let.selection)[0]
            for i, scope in enumerate(scopes):
                scope.lets[let.name] = i in selected

    def groups(
        self, part: object, purpose: Purpose, among: Set[int] | None = None
    ) -> list[list[int]]:
        """Group sites that give an expression the same inputs, so that it has one value in each group.

        Groups, and the sites in each, keep the order of the model. The ``purpose`` decides what a bare name
        is: in a condition it is never a param.
        """
        params = self.scopes[0].values.keys() - {*m.ATTRIBUTES} if self.scopes else set()
        read = [*names_read(part, params, purpose)]  # Params are equal everywhere.
        names = frozenset(name for name, _ in read)
        if any(of in ("condition", "part") for _, of in read):  # Any name but a let's is a kind.
            names |= {"kind"}
        if names not in self._groups_by_names:
            groups: dict[object, list[int]] = {}
            for i, scope in enumerate(self.scopes):
                values = [(scope.values.get(name), scope.lets.get(name)) for name in names]
                groups.setdefault((*values, scope.layers, scope.by_name), []).append(i)
            self._groups_by_names[names] = [*groups.values()]
        if among is None:
            return self._groups_by_names[names]
        inside = ([i for i in group if i in among] for group in self._groups_by_names[names])
        return sorted(group for group in inside if group)

    def partition(self, condition: m.Condition) -> tuple[Set[int], Set[int]]:
        """Return where a condition is true and where it is false; elsewhere it has no value."""
        known = self._partitions.get(id(condition))
        if known is None:
            known = self._partitions[id(condition)] = condition, *self._partition(condition)
        return known[1:]

    def _partition(self, condition: m.Condition) -> tuple[Set[int], Set[int]]:
        match condition:
            case m.Selection(include=include, exclude=exclude):
                (included, others), (excluded, left) = self._any(include), self._any(exclude)
                return included & left, others | (included & excluded)
            case m.Ref(ref=name) if name in self._lets:
                return self._lets[name], self.all - self._lets[name]
            case m.Or(any_of=parts):
                return self._any(parts)
            case m.And(all_of=parts):
                held, failed = self.all, frozenset[int]()
                for part in parts:
                    true, false = self.partition(part)
                    held, failed = held & true, failed | (held & false)
                return held, failed
            case m.Not(negated=inner):
                true, false = self.partition(inner)
                return false, true
        found: tuple[set[int], set[int]] = set(), set()
        for group in self.groups(condition, "condition"):
            with suppress(EvaluationError):
                found[not self.scopes[group[0]].holds(condition)].update(group)
        return found

    def _any(self, parts: Sequence[m.Expression]) -> tuple[Set[int], Set[int]]:
        found, left = frozenset[int](), self.all
        for part in parts:
            true, false = self.partition(part)
            found, left = found | (left & true), left & false
        return found, left

    def select(
        self, condition: m.Condition, loc: Loc = (), among: Set[int] | None = None
    ) -> Set[int]:
        """Return where a condition is true.

        Raises:
            EvaluationError: at one of the places it has no value.
        """
        among = self.all if among is None else among
        true, false = self.partition(condition)
        if valueless := among - true - false:
            self.scopes[min(valueless)].holds(condition, loc)  # Raises.
        return among & true

    def any_holds(self, condition: m.Expression, loc: Loc = ()) -> bool:
        """Tell whether a condition is true at a place; at some it may have no value.

        Raises:
            EvaluationError: it has none at any.
        """
        true, false = self.partition(condition)
        if self.all and not true and not false:
            self.scopes[0].holds(condition, loc)  # Raises.
        return bool(true)
