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
    """The sites of a model, or its parameters, each with a scope. Sets hold their indices.

    The constructor adds the spec's ``lets`` to the scopes.
    """

    def __init__(self, scopes: Sequence[Scope], lets: Iterable[Let]) -> None:
        self.scopes = scopes
        self.all: Set[int] = frozenset(range(len(scopes)))
        # By id of the condition, which is stored so that its id is not reused.
        self._partitions: dict[int, tuple[m.Condition, Set[int], Set[int]]] = {}
        self._groups_by_names: dict[frozenset[str], list[list[int]]] = {}
        self._lets: dict[str, Set[int]] = {}
        self._named: dict[str, m.Expression] = {}
        for number, let in enumerate(
            lets
        ):  # In order, since a let may refer only to lets above it.
            if let.value is not None:
                self._named[let.name] = let.value
                loc: Loc = ("lets", number, "selection", "include", 0)
                for scope in scopes:
                    scope.named[let.name] = (let.value, loc)
                continue
            selected = self._lets[let.name] = self.partition(let.selection)[0]
            for i, scope in enumerate(scopes):
                scope.lets[let.name] = i in selected

    def groups(
        self, part: object, purpose: Purpose, among: Set[int] | None = None
    ) -> list[list[int]]:
        """Group sites that give an expression the same inputs, so that it has one value in each group.

        Groups, and the sites in each, are in the order of the model. The ``purpose`` decides the meaning
        of a bare
        name: in a condition it is never a param.
        """
        read = self._read(part, purpose)
        names = frozenset(name for name, _ in read)
        if any(of in ("condition", "part") for _, of in read):  # Names other than lets are kinds.
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

    def _read(self, part: object, purpose: Purpose) -> list[tuple[str, Purpose]]:
        """Return the names that an expression reads, also in lets that name values."""
        params = self.scopes[0].values.keys() - {*m.ATTRIBUTES} if self.scopes else set()
        read: list[tuple[str, Purpose]] = []
        for name, of in names_read(part, params, purpose):  # Params are equal everywhere.
            if name in self._named:
                read += self._read(self._named[name], "word")
            else:
                read.append((name, of))
        return read

    def partition(self, condition: m.Condition) -> tuple[Set[int], Set[int]]:
        """Return the sites where a condition is true, and where it is false. Elsewhere it has no value."""
        cached = self._partitions.get(id(condition))
        if cached is None:
            cached = self._partitions[id(condition)] = condition, *self._partition(condition)
        return cached[1:]

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
                held = self.all
                failed = frozenset[int]()
                for part in parts:
                    true, false = self.partition(part)
                    failed = failed | (held & false)
                    held = held & true
                return held, failed
            case m.Not(negated=inner):
                true, false = self.partition(inner)
                return false, true
        result: tuple[set[int], set[int]] = set(), set()
        for group in self.groups(condition, "condition"):
            with suppress(EvaluationError):
                result[not self.scopes[group[0]].holds(condition)].update(group)
        return result

    def _any(self, parts: Sequence[m.Expression]) -> tuple[Set[int], Set[int]]:
        chosen = frozenset[int]()
        left = self.all
        for part in parts:
            true, false = self.partition(part)
            chosen = chosen | (left & true)
            left = left & false
        return chosen, left

    def select(
        self, condition: m.Condition, loc: Loc = (), among: Set[int] | None = None
    ) -> Set[int]:
        """Return the sites where a condition is true.

        Raises:
            EvaluationError: the condition has no value at one of the sites.
        """
        among = self.all if among is None else among
        true, false = self.partition(condition)
        if valueless := among - true - false:
            self.scopes[min(valueless)].holds(condition, loc)  # Raises.
        return among & true

    def any_holds(self, condition: m.Expression, loc: Loc = ()) -> bool:
        """Return whether a condition is true at some site. It may lack a value at others.

        Raises:
            EvaluationError: the condition has no value at any site.
        """
        true, false = self.partition(condition)
        if self.all and not true and not false:
            self.scopes[0].holds(condition, loc)  # Raises.
        return bool(true)
