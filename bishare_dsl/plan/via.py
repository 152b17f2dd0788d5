"""The transform that a share's `via` says: one step, or a composition of several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from pydantic import ValidationError

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import Loc, Problem, SpecError
from bishare_dsl.diagnostics.codes import spec as codes
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.plan.facts import BadGate, BadOption, UnknownOption
from bishare_dsl.spec.evaluate import EvaluationError, Value
from bishare_dsl.spec.facts import UnknownName
from bishare_dsl.transforms import (
    PLAIN,
    Sort,
    Transform,
    load_transform,
    transform_kind,
    transform_names,
)
from bishare_dsl.transforms.described import why_refused
from bishare_dsl.transforms.gate import NOTHING_SUMMED, Gate, gate_refusal
from bishare_dsl.transforms.shipped.composed import PLACES, Composed, Place, compose, refusal
from bishare_dsl.transforms.shipped.composed import Step as TransformStep

Evaluate = Callable[[m.Expression, Loc], Value]
"""Evaluates an option, or raises EvaluationError."""


class LoadedVia(Record):
    """The transform of a `via`, and those of its options that the spec sets to ``auto``."""

    transform: Transform
    auto: tuple[str, ...] = ()


class _Loaded(Record):
    """A step of a spec with its transform, the location in its share, and the options that are ``auto``."""

    loc: Loc
    step: m.Step
    transform: Transform
    auto: tuple[str, ...]
    gate: Gate | None

    def composed(self, place: Place, *, both: bool) -> TransformStep:
        """Return the step of a composition.

        Args:
            place: of the step.
            both: whether it stands at A and B. The place then tells its tensors from those at the other
                place, and the gate stands where the step sums matrices.
        """
        name = self.step.name
        gate = self.gate
        if both and place != "between":
            name = None if name is None else f"{name}_{place}"
            gate = None if self.transform.counted(place) is None else gate
        return TransformStep(
            transform=self.step.transform, options=self.transform.options(), gate=gate, name=name
        )


def load_via(
    share: m.Share, params: Mapping[str, Value], evaluate: Evaluate, problems: list[Problem]
) -> LoadedVia | None:
    """Return the transform of a share. Problems go to ``problems``, located in the share.

    Args:
        share: with a `via` or none.
        params: of the spec, by name.
        evaluate: returns the value of an option.
        problems: of the steps.
    """
    via = share.via
    if via is None:
        return LoadedVia(load_transform(PLAIN, {}))
    loaded = []
    for loc, step in share.steps.items():
        one = _load(loc, step, params, evaluate, problems)
        if one is None:
            return None
        loaded.append(one)
    is_alone = isinstance(via, m.Via) and not via.then
    if is_alone and loaded[0].gate is None and loaded[0].step.name is None:
        return LoadedVia(loaded[0].transform, loaded[0].auto)
    if isinstance(via, m.Via):
        chains = _places(loaded, problems)
    else:
        chains = {place: [one for one in loaded if one.loc[1] == place] for place in PLACES}
    if chains is None:
        return None
    return _composed(chains, both=isinstance(via, m.Via), problems=problems)


def _load(
    loc: Loc,
    step: m.Step,
    params: Mapping[str, Value],
    evaluate: Evaluate,
    problems: list[Problem],
) -> _Loaded | None:
    """Return a step with its transform, or None if it is wrong."""
    name = step.transform
    try:
        kind = transform_kind(name)
    except KeyError:
        fact = UnknownName(name, "transform", frozenset(transform_names()) - {PLAIN})
        problems.append(codes.UNKNOWN_TRANSFORM(name=name, loc=(*loc, "transform"), fact=fact))
        return None
    except SpecError as error:
        problems += (replace(problem, loc=(*loc, "transform")) for problem in error.problems)
        return None
    values: dict[str, Value] = {}
    for option, expression in step.options.items():
        try:
            values[option] = evaluate(expression, (*loc, "options", option))
        except EvaluationError as error:
            problems.append(error.problem)
    if values.keys() < step.options.keys():
        return None  # Without all values the transform is unknown.
    auto = _auto(step, kind, params)
    values = {name: value for name, value in values.items() if name not in auto}
    try:
        transform = load_transform(name, values, ValidationError)
    except ValidationError as error:
        problems += _bad_options(loc, name, kind, values, error)
        return None
    if step.gate is None:
        return _Loaded(loc, step, transform, auto, None)
    gate = _gate((*loc, "gate"), step.gate, transform, evaluate, problems)
    return None if gate is None else _Loaded(loc, step, transform, auto, gate)


def _gate(
    loc: Loc,
    written: m.Gate,
    transform: Transform,
    evaluate: Evaluate,
    problems: list[Problem],
) -> Gate | None:
    """Return the gate of a step, or None if it is wrong."""
    from bishare_dsl.language.text import gate_text

    text = gate_text(written)
    top = None
    if written.top is not None:
        try:
            top = evaluate(written.top, (*loc, "top"))
        except EvaluationError as error:
            problems.append(error.problem)
            return None
        why = None
        if type(top) is not int:
            why = "`top` is a whole number"
        elif top < 2:
            why = "with one matrix the coefficient is always 1, so that the router never learns"
        if why is not None:
            problems.append(_bad_gate(transform, text, why, (*loc, "top")))
            return None
    gate = Gate.model_validate({"top": top, "of": written.of})
    if all(transform.counted(place) is None for place in PLACES):
        problems.append(_bad_gate(transform, text, NOTHING_SUMMED, loc))
        return None
    return gate


def _bad_gate(transform: Transform, text: str, why: str, loc: Loc) -> Problem:
    return codes.BAD_OPTION(
        transform=transform.name, what=f"`{text}`", why=why, loc=loc, fact=BadGate(transform.name)
    )


def _bad_options(
    loc: Loc,
    name: str,
    kind: type[Transform],
    values: Mapping[str, Value],
    error: ValidationError,
) -> list[Problem]:
    """Return the problems of options that a transform rejects."""
    problems = []
    for fault in error.errors(include_url=False, include_context=False):
        option = str(fault["loc"][0]) if fault["loc"] else ""
        if fault["type"] == "extra_forbidden":
            has = [field.alias or key for key, field in kind.model_fields.items()]
            place = (*loc, "options", option, "name")
            unknown = UnknownOption(name, option, tuple(has))
            wrong = codes.UNKNOWN_OPTION(transform=name, name=option, loc=place, fact=unknown)
            problems.append(wrong)
            continue
        problems.append(
            codes.BAD_OPTION(
                transform=name,
                what=f"{option} = {values.get(option)}" if option else "these options",
                why=why_refused(option, fault["type"], fault["msg"]),
                fact=BadOption(name, option, values.get(option)),
                loc=(*loc, "options", option) if option else loc,
            )
        )
    return problems


def _auto(step: m.Step, kind: type[Transform], params: Mapping[str, Value]) -> tuple[str, ...]:
    """Return the options that a step sets to `auto`."""
    words = {
        name: params.get(option.ref, option.ref)
        for name, option in step.options.items()
        if isinstance(option, m.Ref)
    }
    return tuple(name for name in kind.auto if words.get(name) == "auto")


def _places(
    loaded: Sequence[_Loaded], problems: list[Problem]
) -> dict[Place, list[_Loaded]] | None:
    """Return the chains of `via FACTOR then BETWEEN`: what makes factors stands at both A and B."""
    factors: list[_Loaded] = []
    between: list[_Loaded] = []
    for one in loaded:
        if one.transform.sort is Sort.BETWEEN:
            between.append(one)
        elif between and one.transform.sort is Sort.FACTOR:
            last = between[-1].transform.name
            why = f"it makes a factor, so that it comes before {last}, which stands between A and B"
            problems.append(_bad_step(one, why))
            return None
        else:
            factors.append(one)
    return {"A": factors, "B": factors, "between": between}


def _bad_step(one: _Loaded, why: str) -> Problem:
    loc = (*one.loc, "transform")
    return codes.BAD_STEP(transform=one.transform.name, why=why, loc=loc)


def _composed(
    chains: Mapping[Place, Sequence[_Loaded]], *, both: bool, problems: list[Problem]
) -> LoadedVia | None:
    """Compose the chains of the places; ``both`` says that A and B have the same chain."""
    steps: dict[Place, list[TransformStep]] = {place: [] for place in PLACES}
    auto = []
    if both and not chains["A"]:  # As wide as the widest site, like the factors of `via Core`.
        window = TransformStep(transform="SS", options={"slice": "leading"})
        steps["A"] = steps["B"] = [window]
    transform = compose(steps["A"], steps["B"])
    for place in PLACES:
        for index, one in enumerate(chains[place]):
            why = refusal(place, index, one.transform)
            if why is not None:
                problems.append(_bad_step(one, why))
                return None
            auto += [f"{place}.{index}.{option}" for option in one.auto]
            step = one.composed(place, both=both)
            if step.gate is not None:
                why = gate_refusal(place, one.transform, step.gate)
                if why is not None:
                    text = step.gate.written()
                    problems.append(_bad_gate(one.transform, text, why, (*one.loc, "gate")))
                    return None
            try:
                steps[place].append(step)
                transform = compose(steps["A"], steps["B"], steps["between"])
            except ValidationError as error:
                fault = error.errors(include_url=False, include_context=False)[0]
                why = why_refused("", fault["type"], fault["msg"])
                problems.append(_bad_step(one, why))
                return None
    problems += _unused_names(chains, transform)
    return LoadedVia(transform, tuple(auto))


def located(share: m.Share, transform: Transform, problem: Problem) -> Problem:
    """Return a problem of a transform with its location in the share."""
    if not isinstance(transform, Composed) or not isinstance(share.via, m.Via):
        return problem
    match problem.loc:
        case ("via", "between", int(index), *rest):
            number = len(share.via.then) + 1 - len(transform.between) + index
        case ("via", "A" | "B", int(number), *rest):
            pass
        case _:
            return problem
    loc: Loc = ("via",) if number == 0 else ("via", "then", number - 1)
    return replace(problem, loc=(*loc, *rest))


def _unused_names(
    chains: Mapping[Place, Sequence[_Loaded]], transform: Composed
) -> Iterator[Problem]:
    """Find names of steps that have no private tensor."""
    named = {one.loc: one for chain in chains.values() for one in chain if one.step.name}
    for place in PLACES:
        for index, one in enumerate(chains[place]):
            step = transform.at(place)[index]
            if step.owned or step.router is not None:
                named.pop(one.loc, None)
    for loc, one in named.items():
        why = f": {one.transform.name} has no private tensor"
        name = str(one.step.name)
        yield codes.UNUSED(what="the name", name=name, why=why, loc=(*loc, "name"))
