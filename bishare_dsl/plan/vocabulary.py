"""Look up the names that a spec mentions among the sites or parameters of a model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Set
from functools import cached_property
from typing import Literal

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import Loc, Problem
from bishare_dsl.diagnostics.codes import plan as codes
from bishare_dsl.diagnostics.codes.spec import CONSTANT_KEY, NO_VALUE, UNKNOWN_NAME
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.plan.check import empty_range
from bishare_dsl.plan.facts import ComparedPattern, UnknownPattern, UnknownValue
from bishare_dsl.plan.settings import COUNTED, settings_read, without_value
from bishare_dsl.spec.evaluate import EvaluationError, Scope, Value, in_key
from bishare_dsl.spec.facts import UnknownName
from bishare_dsl.spec.site_sets import SiteSets
from bishare_dsl.spec.walk import Mention


def key_value(scope: Scope, part: m.Expression, loc: Loc = ()) -> Value:
    """Return the value of a part of a key at a site: a let or a kind is true or false there."""
    if isinstance(part, m.Ref) and part.ref not in {*scope.values, *scope.named}:
        return scope.holds(part)
    try:
        return scope.value(part, loc)
    except EvaluationError as error:
        if isinstance(part, m.Ref) and part.ref in scope.named:
            part, _ = scope.named[part.ref]
        raise EvaluationError(without_value(error.problem, part, scope)) from error


class Vocabulary(Record):
    """The names that a spec may use for the sites, or the parameters, of a model.

    A bare name can be one of ``kinds``, one of ``parts`` (names that some model has), or one of the other
    ``declared`` names. ``place`` says whether the names are those of sites or of parameters to train.
    """

    model: str
    site_sets: SiteSets
    kinds: Collection[str]
    parts: Collection[str]
    declared: Collection[str]
    place: Literal["kind", "train"] = "kind"

    @cached_property
    def names(self) -> frozenset[str]:
        """All names that may stand alone in a condition."""
        scopes = self.site_sets.scopes
        lets = scopes[0].lets if scopes else {}
        return frozenset([*self.kinds, *self.parts, *lets])

    def unknown(self, name: str, loc: Loc, *, as_key: bool = False) -> Problem:
        """Return the problem of a bare name that no module has."""
        fact = UnknownName(name, self.place, self.names)
        if as_key or in_key(loc):
            fact = UnknownName(name, "key", self.names | {*m.ATTRIBUTES, "model"})
        return codes.NO_SUCH_SITE(what=f"`{name}`", model=self.model, loc=loc, fact=fact)

    @cached_property
    def _counts(self) -> dict[str, list[tuple[Scope, int]]]:
        """The numbers of layers of each tower and of experts, each with a scope that has them."""
        scopes = self.site_sets.scopes
        towers = {scope.values["tower"]: scope for scope in scopes}.values()
        experts = [n for scope in scopes if isinstance(n := scope.values["expert"], int)]
        return {
            "layer": [(scope, scope.layers) for scope in towers],
            "expert": [(scope, max(experts, default=-1) + 1) for scope in (*towers,)[:1]],
        }

    def _most(self, counted: str) -> int:
        """Return the largest number of layers or experts of a tower."""
        return max((count for _, count in self._counts[counted]), default=0)

    def problems(self, asked: Iterable[Mention]) -> list[Problem]:
        """Find names and values that no site has, and expressions without a value at any site.

        Parts of an expression that was already reported are skipped.
        """
        reported: list[Problem] = []
        locs: set[Loc] = set()
        seen: set[tuple[Loc, str]] = set()  # what contains a problem, and its message
        for mention in asked:
            ends = range(len(mention.loc) + 1)
            if not locs.isdisjoint(mention.loc[:end] for end in ends):
                continue
            try:
                new = [*self._unknown(mention.part, mention)]
            except EvaluationError as error:
                new = [error.problem]
            # Report one of two equal problems in a condition.
            new = [one for one in new if (one.loc[:-1], one.message) not in seen]
            reported += new
            locs.update(one.loc for one in new)
            seen.update((one.loc[:-1], one.message) for one in new)
        return reported

    def without_value(self, mention: Mention, among: Set[int]) -> Iterator[Problem]:
        """Find a site, of some, at which a condition of a selection has no value."""
        part = mention.part
        if isinstance(part, m.Ref | m.Range) or mention.loc[-2] not in ("include", "exclude"):
            return
        if mention.purpose != "condition":
            return  # It is the value that a let names.
        true, false = self.site_sets.partition(part)
        for i in sorted(among - true - false)[:1]:
            try:
                self.site_sets.scopes[i].holds(part, mention.loc)
            except EvaluationError as error:
                yield without_value(error.problem, part, self.site_sets.scopes[i])

    def _unknown(self, part: m.Range | m.Expression, mention: Mention) -> Iterator[Problem]:
        """Find what one mention names that the model does not have."""
        loc = mention.loc
        beside = mention.compared_with
        if isinstance(part, m.Ref) and part.ref in settings_read(loc):
            return
        match mention.purpose, part:
            case "condition" | "part", _ if not isinstance(part, m.Range):
                yield from self._in_condition(part, loc)
            case "key", m.Ref(ref=name) if not self._is_known(name) and name not in self.kinds:
                yield self.unknown(name, loc, as_key=True)
            case "key", m.Ref(ref="expert") if not self._most("expert"):
                yield CONSTANT_KEY(loc=loc)
            case "number", m.Ref():
                yield from self._in_number(part, loc)
            case "subject", m.Ref(ref=name) if not self._is_known(name):
                yield self._no_such_name(name, loc)
            case "side", m.Ref() if not self._is_known(part.ref):
                yield from self._in_comparison(part, beside, loc)
            case "item" | "arm", _ if beside is not None:
                if mention.purpose == "arm" and mention.domain == "share":
                    return  # Planning a share compares the arms with its own modules.
                if not isinstance(beside, m.Ref) or self._is_known(beside.ref):
                    yield from self.item_problems(beside, part, loc)

    def _in_condition(self, part: m.Expression, loc: Loc) -> Iterator[Problem]:
        """Find a condition that holds nowhere, for what it names is not there."""
        any_holds = self.site_sets.any_holds
        scopes = self.site_sets.scopes
        match part:
            case m.Ref(ref=name):
                if scopes and name in scopes[0].named:
                    any_holds(part, loc)  # Raises if it is never a condition.
                    return
                lets = scopes[0].lets if scopes else {}
                known = any_holds(part) if name in self.parts else name in lets
                if not known and name not in self.kinds:
                    yield self.unknown(name, loc)
            case m.Match() if not any_holds(part):
                yield self._no_match(part, loc)
            case m.Compare(
                op=op, left=m.Ref(ref=name), right=m.Match(attribute=what, pattern=pattern)
            ) if name in m.ATTRIBUTES:
                why = f"`{what} {pattern}` is true or false, and no `{name}`"
                yield NO_VALUE(loc=loc, why=why, fact=ComparedPattern(what, op, pattern))
            case m.Compare(left=left, right=right):
                words = [side.ref for side in (left, right) if isinstance(side, m.Ref)]
                counted = [word for word in words if word in COUNTED]
                # Words are checked in their own condition; whether a site has a layer may always be tested.
                known = all(map(self._is_known, words)) and "none" not in words
                if counted and known and not any_holds(part, loc):
                    yield self._outside(counted[0], "this comparison", loc)
            case int() | float() | m.Binary() | m.Call():
                any_holds(part, loc)  # Raises: a number is not a predicate.

    def _in_number(self, part: m.Ref, loc: Loc) -> Iterator[Problem]:
        """Find a word where a number is needed."""
        scopes = self.site_sets.scopes
        if part.ref in self.kinds or part.ref in self.parts:
            yield NO_VALUE(loc=loc, why=f"`{part.ref}` names modules, and is no number")
        elif scopes and part.ref not in COUNTED:
            scopes[0].number(part, loc)  # Raises: a word is not a number.

    def _in_comparison(
        self, part: m.Ref, beside: m.Expression | None, loc: Loc
    ) -> Iterator[Problem]:
        """Find an unknown name that is compared with an attribute, or with another name."""
        named = beside.ref if isinstance(beside, m.Ref) else ""
        if named and not self._is_known(named) and loc[-1] == "right":
            return  # What it is compared with is reported.
        if not self._is_known(named) or named in COUNTED:
            yield self._no_such_name(part.ref, loc)
        elif beside is not None and named in m.ATTRIBUTES:  # A param may have other words.
            yield from self.item_problems(beside, part, loc)

    def _is_known(self, name: str) -> bool:
        return name in self.declared or name in self.parts or name == "none"

    def item_problems(
        self,
        subject: m.Expression,
        item: m.Range | m.Expression,
        loc: Loc,
        among: Set[int] | None = None,
    ) -> Iterator[Problem]:
        """Find items that the subject never equals. Ranges of layers or experts must be inside the model.

        Args:
            subject: the expression to compare.
            item: a value or a range.
            loc: the location of the item.
            among: the sites to consider; by default all.
        """
        counted = subject.ref if isinstance(subject, m.Ref) and subject.ref in COUNTED else None
        if isinstance(item, m.Range) and counted:
            wrong_range = self._range_problem(subject, item, counted, loc)
            if wrong_range is not None:
                yield wrong_range
                return
        considered = self.site_sets.all if among is None else among
        true, false = self.site_sets.partition(m.Member(value=subject, among=(item,)))
        if true & considered or not considered:
            return
        valued = false & considered
        if not valued:
            scope = self.site_sets.scopes[min(considered)]
            scope.includes(item, scope.value(subject, loc), subject, loc)  # Raises.
        if counted:
            what = f"this range of {counted}s" if isinstance(item, m.Range) else f"this {counted}"
            yield self._outside(counted, what, loc)
        else:
            yield self._no_such_value(subject, item, valued, loc)

    def _range_problem(
        self, subject: m.Expression, item: m.Range, counted: str, loc: Loc
    ) -> Problem | None:
        """Find whether a range of layers or experts is empty, or has an end outside of every tower."""
        counts = self._counts[counted]
        ends = [(*scope.bounds(item, subject, loc), count) for scope, count in counts]
        if counts and item.first is not None and item.last is not None:
            scope, _ = counts[0]
            if all(first > last for first, last, _ in ends):
                return empty_range(scope.number(item.first), scope.number(item.last), loc)
        for first, last, count in ends:
            begins_inside = item.first is None or 0 <= first < count
            ends_inside = item.last is None or 0 <= last < count
            if begins_inside and ends_inside:
                return None
        return self._outside(counted, f"this range of {counted}s", loc)

    def _no_such_value(
        self, subject: m.Expression, item: m.Range | m.Expression, valued: Set[int], loc: Loc
    ) -> Problem:
        """Return the problem of an item that the subject equals at none of the sites where it has a value."""
        groups = self.site_sets.groups((subject, item), "item", valued)
        scopes = [self.site_sets.scopes[i] for i, *_ in groups]
        values = frozenset(str(scope.value(subject)) for scope in scopes)
        if isinstance(item, m.Range):
            return codes.NO_SUCH_SITE(what="this range", model=self.model, loc=loc)
        value = str(scopes[0].value(item, loc))
        fact = UnknownValue(subject, value, values)
        return codes.NO_SUCH_SITE(what=f"`{value}`", model=self.model, loc=loc, fact=fact)

    def _no_match(self, part: m.Match, loc: Loc) -> Problem:
        values = frozenset(str(scope.values[part.attribute]) for scope in self.site_sets.scopes)
        fact = UnknownPattern(part.attribute, part.pattern, values)
        what = f"`{part.attribute} {part.pattern}`"
        return codes.NO_SUCH_SITE(what=what, model=self.model, loc=loc, fact=fact)

    def _no_such_name(self, name: str, loc: Loc) -> Problem:
        fact = UnknownName(name, "name", frozenset(self.declared))
        return UNKNOWN_NAME(name=name, loc=loc, fact=fact)

    def _outside(self, counted: str, what: str, loc: Loc) -> Problem:
        count = self._most(counted)
        if counted == "layer" and not count:
            return codes.NO_SUCH_SITE(what=what, model=self.model, loc=loc)
        if counted == "layer":
            return codes.NO_SUCH_LAYER(
                what=what, model=self.model, last=count - 1, layers=count, loc=loc
            )
        has = f"experts 0..{count - 1}" if count else "no experts"
        return codes.NO_SUCH_EXPERT(what=what, model=self.model, has=has, loc=loc)
