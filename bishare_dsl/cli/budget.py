"""The options ``--match``, ``--free`` and ``--within``: values of params that meet a budget."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from bishare_dsl.budget import NotFreeError, Solution, solve
from bishare_dsl.cli.options import Value, read_value
from bishare_dsl.cli.report import CommandError
from bishare_dsl.diagnostics import BishareError, Problem, SourceMap, SpecError
from bishare_dsl.diagnostics.codes import usage as codes

if TYPE_CHECKING:
    from bishare_dsl.models import Architecture
    from bishare_dsl.spec import Spec

_NUMBER = re.compile(r"(\d[\d,_]*(?:\.\d+)?)([kMGB]?)")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
_PERCENT = 1.0
"""The tolerance if none is given."""


@dataclass(frozen=True)
class Budget:
    """What to match, which params may change, and by which fraction of the budget a count may differ.

    Attributes:
        match: a number such as ``9.46M``, or a spec with values such as ``lora:r=2``.
        free: names of params.
        within: 0.01 is one percent.
    """

    match: str
    free: tuple[str, ...]
    within: float

    def parameters(self, base: Architecture) -> int:
        """Count the parameters to match on a model.

        Raises:
            BishareError: it is neither a number nor a spec with values, or trains nothing (BS907), or the
            spec is wrong.
        """
        number = _NUMBER.fullmatch(self.match)
        if number is not None:
            digits = re.sub("[,_]", "", number[1])
            parameters = round(float(digits) * _UNITS[number[2]])
        else:
            from bishare_dsl.cli.reading import read_spec
            from bishare_dsl.compiler import make_plan

            name, params = _spec_and_params(self.match)
            spec, where = read_spec(name, base)
            parameters = make_plan(spec, base, params, where).plan.trainable
        if not parameters:
            raise CommandError(codes.MALFORMED_MATCH(given=self.match, why="trains no parameter"))
        return parameters


@dataclass(frozen=True)
class Match:
    """The settings of a spec that meet a budget, or the nearest below and above it, and the ``problem``."""

    settings: list[dict[str, Value]]
    problem: Problem | None = None


def wanted(match: str | None, free: Iterable[str], within: float | None) -> Budget | None:
    """Return the budget that the options ask for, None without ``--match``.

    Raises:
        click.UsageError: one of the others is given without it.
    """
    names = tuple(dict.fromkeys(free))
    if match is not None:
        return Budget(match, names, (_PERCENT if within is None else within) / 100)
    if names:
        raise click.UsageError("--free goes with --match, such as `--match lora:r=8`")
    if within is not None:
        raise click.UsageError("--within goes with --match, such as `--match lora:r=8`")
    return None


def check_names(
    specs: Sequence[tuple[Spec, SourceMap | None]], free: Iterable[str], given: Iterable[str]
) -> None:
    """Check that each free param exists in a spec, and that ``--set`` does not give it.

    Raises:
        BishareError: none of the specs has a param of that name (BS207), or it has a value (BS908).
    """
    from bishare_dsl.compiler import advised

    known = {param.name for spec, _ in specs for param in spec.params}
    unknown = [name for name in free if name not in known]
    for spec, where in specs:
        try:
            spec.with_params(dict.fromkeys(unknown, 0))
        except SpecError as error:
            raise advised(error, where, spec=spec) from None
    for name in sorted(set(free).intersection(given)):
        help = f"leave `{name}` out of `--free` or of `--set`"
        owner = next(spec.name for spec, _ in specs if name in spec.values)
        why = "`--set` gives its value"
        raise CommandError(codes.NOT_FREE(name=name, spec=owner, why=why, help=help))


def meet(
    budget: Budget,
    parameters: int,
    spec: Spec,
    where: SourceMap | None,
    base: Architecture,
    chosen: Mapping[str, Value],
) -> Match:
    """Find the values of a spec's free params that meet a budget.

    Args:
        budget: to meet.
        parameters: the number that it asks for on this model.
        spec: whose params are chosen.
        where: the locations of its parts.
        base: the shapes of the model.
        chosen: values of other params.

    Raises:
        BishareError: the spec does not fit the model, or a free param cannot be chosen (BS908).
    """
    from bishare_dsl.compiler import make_plan

    counter = _Counter(budget, parameters, spec, base, chosen)
    own_count = make_plan(spec, base, chosen, where).plan.trainable
    free = [name for name in budget.free if name in counter.values]
    if not free:
        settings = [dict(chosen)]
        if abs(own_count - parameters) <= budget.within * parameters:
            return Match(settings)
        nearest = [own_count]
        why = f"nothing is free, and it has {_fractions(nearest, parameters)}"
    else:
        try:
            solution = counter.solve(free)
        except NotFreeError as error:
            loc = ("params", [param.name for param in spec.params].index(error.name))
            problem = codes.NOT_FREE(name=error.name, spec=spec.name, why=error.why, loc=loc)
            raise SpecError([problem], where) from None
        settings = [{**chosen, **candidate.values} for candidate in solution.candidates]
        if solution.met is not None:
            return Match(settings)
        nearest = [round(candidate.count) for candidate in solution.candidates]
        why = f"the nearest values have {_fractions(nearest, parameters)}"
    problem = codes.BUDGET_NOT_MET(
        spec=spec.name,
        percent=f"{100 * budget.within:g}",
        budget=f"{parameters:,}",
        why=why,
        loc=("name",),
        help=_remedy(counter, free, nearest),
    )
    return Match(settings, problem)


class _Counter:
    """The number of parameters that a spec trains for values of its params."""

    def __init__(
        self,
        budget: Budget,
        parameters: int,
        spec: Spec,
        base: Architecture,
        chosen: Mapping[str, Value],
    ) -> None:
        self.parameters = parameters
        self.values = {**spec.values, **chosen}
        self.chosen = chosen
        self._within = budget.within
        self._spec = spec
        self._base = base
        self._counts: dict[tuple[Value, ...], float] = {}

    def count(self, values: Mapping[str, int]) -> float:
        """Count the parameters of a plan, infinity where none is possible."""
        from bishare_dsl.plan import build_plan

        params = {**self.values, **values}
        key = tuple(params.values())
        if key not in self._counts:
            try:
                plan, _ = build_plan(self._spec.with_params(params), self._base)
                self._counts[key] = plan.trainable
            except BishareError:
                self._counts[key] = math.inf
        return self._counts[key]

    def solve(self, free: Iterable[str]) -> Solution:
        """Find the values of free params.

        Raises:
            NotFreeError: one of them cannot be chosen.
        """
        own: dict[str, int] = {}
        for name in free:
            value = self.values[name]
            if not isinstance(value, int):
                raise NotFreeError(name, f"its value is `{value}`, and not a whole number")
            own[name] = value
        return solve(self.count, own, self.parameters, self._within)


def _remedy(counter: _Counter, free: list[str], nearest: list[int]) -> str:
    """Say which further params meet the budget if they are free, or which tolerance takes the nearest."""
    others = []
    for name, value in counter.values.items():
        if name in free or name in counter.chosen or not isinstance(value, int):
            continue
        try:
            solution = counter.solve([*free, name])
        except NotFreeError:
            continue
        if solution.met is not None:
            return f"add `--free {name}`"
        others.append(name)
    if len(others) > 1 and counter.solve([*free, *others]).met is not None:
        return f"add `--free {','.join(others)}`"
    distance = min(abs(count - counter.parameters) for count in nearest) / counter.parameters
    return f"`--within {math.ceil(100 * distance)}` takes the nearest"


def _fractions(counts: list[int], parameters: int) -> str:
    """Write counts relative to a budget: ``98.1% and 101.9% of it``."""
    return f"{' and '.join(f'{count / parameters:.1%}' for count in counts)} of it"


def _spec_and_params(match: str) -> tuple[str, dict[str, Value]]:
    """Read ``lora:r=2,lora_alpha=4``: the name of a spec, and values of its params.

    Raises:
        CommandError: it has another form (BS907).
    """
    name, colon, settings = match.rpartition(":")
    if not colon:
        return match, {}
    params: dict[str, Value] = {}
    for setting in settings.split(","):
        param, _, text = setting.partition("=")
        value = read_value(text.strip())
        if value is None or not param.strip():
            why = f"has `{setting}` where a value of a param is expected"
            raise CommandError(codes.MALFORMED_MATCH(given=match, why=why))
        params[param.strip()] = value
    return name, params
