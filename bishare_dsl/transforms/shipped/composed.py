"""Composed: a transform for each place of a term, made of steps.

The places are A, B and *between*. A chain at A or B begins with a step that fits the shared factor to a
site; each later step multiplies its rows from the left. The steps between are square matrices:

    A_effective = mix_n ... mix_1 fit(A)
    B_effective = M_n ... M_1 mix_n ... mix_1 fit(B)
    dW          = B_effective^T A_effective

A composition is a `Transform`, so all that reads a term needs no change. Nothing is multiplied before its
product with an input or an output: a step that mixes returns a `Mixed` factor.

With a `Gate` at a step, the update depends on the token, and is not a matrix: `Composed.update` passes the
input through the steps.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bishare_dsl.diagnostics import Problem
from bishare_dsl.transforms.apply import GAIN_OUT, GAIN_RANK
from bishare_dsl.transforms.gate import ROUTER, Gate, expand, gate_refusal, gather
from bishare_dsl.transforms.registry import COMPOSED
from bishare_dsl.transforms.transform import Own, Sort, Start, Tensors, Transform, Width

if TYPE_CHECKING:
    from torch import Tensor

    from bishare_dsl.transforms.factor import Factor

Place = Literal["A", "B", "between"]

PLACES: tuple[Place, ...] = ("A", "between", "B")
"""The places of a composition, in the order in which they multiply an input."""

_WIDE = 2**40
"""A width that limits no rank."""


class Step(BaseModel):
    """A transform of a chain by name, with its options, its gate, and the name that ``as`` gives it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    transform: str
    options: dict[str, Any] = {}
    gate: Gate | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.name is not None:
            taken = self.name in ("A", "B", GAIN_RANK, GAIN_OUT)
            if taken or not self.name.isidentifier() or "__" in self.name:
                raise ValueError(f"a step cannot be called {self.name!r}")
        # With the defaults, so that equal steps are equal.
        self.__dict__["options"] = self.load().options()
        return self

    def __hash__(self) -> int:
        options = json.dumps(self.options, sort_keys=True)
        return hash((self.transform, self.gate, self.name, options))

    def load(self) -> Transform:
        """Return the transform."""
        from bishare_dsl.transforms.registry import load_transform

        return load_transform(self.transform, self.options)


@dataclass(frozen=True)
class PlacedStep:
    """A step of a composition with its transform and its tensors.

    Attributes:
        place: of its chain.
        index: in the chain, from 0.
        first: whether it fits a shared factor to a site.
        pooled: maps the transform's roles of shared tensors to those of the composition.
        owned: the same of private tensors, without coefficients that a gate replaces.
        router: the role of the gate's own tensor, if there is a gate.
    """

    place: Place
    index: int
    step: Step
    transform: Transform
    pooled: Mapping[str, str]
    owned: Mapping[str, str]
    router: str | None = None

    @property
    def gate(self) -> Gate | None:
        return self.step.gate

    @property
    def count(self) -> int:
        """The number of matrices that it sums at its place; 1 if it sums none."""
        counted = self.transform.counted(self.place)
        return 1 if counted is None else counted.count

    @property
    def first(self) -> bool:
        return self.index == 0 and self.place != "between"

    @property
    def roles(self) -> dict[str, str]:
        """The transform's roles of tensors, and those of the composition."""
        return {**self.pooled, **self.owned}

    def own_role(self, role: str) -> str | None:
        """Return the transform's role of a tensor of the composition; None if another step has it."""
        for inner, outer in self.roles.items():
            if outer == role:
                return inner
        return None

    def tensors(self, tensors: Tensors) -> dict[str, Tensor]:
        """Return the step's tensors, by the transform's roles, before those of other steps."""
        own = {inner: tensors[outer] for inner, outer in self.roles.items()}
        return {**own, **{role: t for role, t in tensors.items() if role not in own}}


def refusal(place: Place, index: int, transform: Transform) -> str | None:
    """Explain why a transform cannot be a step of a composition there, by its sort; None if it can.

    Args:
        place: of the chain.
        index: of the step in its chain, from 0.
        transform: of the step.
    """
    name = transform.name
    if transform.sort is Sort.PAIR:
        return f"{name} makes both factors together, so that it stands alone"
    if place == "between":
        if transform.sort is not Sort.BETWEEN:
            return f"{name} makes a factor, and stands at A or B"
        return None
    if transform.sort is Sort.BETWEEN:
        return f"{name} stands between A and B"
    if index > 0 and not transform.mixes:
        return f"{name} fits a shared factor to a module, so that it comes first in a chain"
    return None


class Composed(Transform):
    """A chain of steps for A, one for B, and one between them; a place without steps is as it is.

    A private tensor stands in by its place: it has the role that the step's transform gives it, or, if the
    step has a name, this name, followed by ``_role`` if the step has several.
    """

    name: ClassVar[str] = COMPOSED
    title: ClassVar[str] = "Composition"

    A: tuple[Step, ...] = Field((), description="steps that make A")
    B: tuple[Step, ...] = Field((), description="steps that make B")
    between: tuple[Step, ...] = Field((), description="steps between A and B")

    @model_validator(mode="after")
    def _is_legal(self) -> Self:
        for step in self.steps:
            reason = refusal(step.place, step.index, step.transform)
            if reason is not None:
                raise ValueError(reason)
            if step.gate is not None:
                reason = gate_refusal(step.place, step.transform, step.gate)
                if reason is not None:
                    raise ValueError(f"{step.transform.name} takes no gate: {reason}")
        roles = [*self.pooled, *self.owned]
        for role in roles:
            if roles.count(role) > 1:
                raise ValueError(f"two steps have a tensor `{role}`: name the steps with `as`")
        return self

    def chain(self, place: Place) -> tuple[Step, ...]:
        """Return the steps of a place as given."""
        return {"A": self.A, "B": self.B, "between": self.between}[place]

    @cached_property
    def steps(self) -> tuple[PlacedStep, ...]:
        """All steps with their transforms; a place without any fits the factor as it is."""
        steps = []
        for place in PLACES:
            chain = self.chain(place)
            if not chain and place != "between":
                chain = (Step(transform="Identity"),)
            steps += [_placed(place, index, step) for index, step in enumerate(chain)]
        return tuple(steps)

    def at(self, place: Place) -> list[PlacedStep]:
        """Return the steps of a place."""
        return [step for step in self.steps if step.place == place]

    # Tensors ------------------------------------------------------------------------------------

    @property
    def pooled(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(role for step in self.steps for role in step.pooled.values())

    @property
    def owned(self) -> tuple[str, ...]:  # type: ignore[override]
        owned: list[str] = []
        for step in self.steps:
            owned += step.owned.values()
            if step.router is not None:
                owned.append(step.router)
        return tuple(owned)

    @property
    def linear(self) -> bool:  # type: ignore[override]
        return all(step.gate is None for step in self.steps)

    def _gated_by(self, role: str) -> PlacedStep | None:
        """Return the step whose router a tensor is; None if it is another tensor."""
        for step in self.steps:
            if step.router == role:
                return step
        return None

    @property
    def fixed(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._of_steps("fixed")

    @property
    def plain(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(role for role in self._of_steps("plain") if role in ("A", "B"))

    @property
    def exact(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._of_steps("exact")

    @property
    def auto(self) -> tuple[str, ...]:  # type: ignore[override]
        """The options of `auto` of all steps, as ``PLACE.INDEX.OPTION``."""
        return tuple(
            f"{step.place}.{step.index}.{option}"
            for step in self.steps
            for option in step.transform.auto
        )

    def _of_steps(self, attribute: str) -> tuple[str, ...]:
        roles = []
        for step in self.steps:
            listed = getattr(step.transform, attribute)
            roles += [outer for inner, outer in step.roles.items() if inner in listed]
        return tuple(roles)

    def step_of(self, role: str) -> tuple[PlacedStep, str]:
        """Return the step that has a tensor, and the role that its transform gives the tensor.

        Raises:
            KeyError: no step has it.
        """
        for step in self.steps:
            inner = step.own_role(role)
            if inner is not None:
                return step, inner
        raise KeyError(role)

    # Rows, walked backwards from the share's rank -----------------------------------------------

    def ranks(self, place: Place, rank: int) -> list[int]:
        """Return the rank of each step of a place: the rows that the next step needs.

        The last step of A and B has the share's rank, and so have all between them.
        """
        steps = self.at(place)
        if place == "between":
            return [rank] * len(steps)
        ranks = [rank]
        for step in reversed(steps[1:]):
            ranks.append(step.transform.mixed_rows(place, ranks[-1]))
        return ranks[::-1]

    def rank_of(self, step: PlacedStep, rank: int) -> int:
        """Return the rank of a step for the share's rank."""
        return self.ranks(step.place, rank)[step.index]

    def check_rank(self, rank: int) -> None:
        for step in self.steps:
            step.transform.check_rank(self.rank_of(step, rank))
        site = Width(1, 1)
        rows = {}
        for place in ("A", "B"):
            first, *later = self.at(place)
            needed = self.rank_of(first, rank)
            fitted = first.transform.rows(needed, site)
            if later and fitted != needed:
                name = first.step.transform
                after = later[0].step.transform
                raise ValueError(f"{name} gives {fitted} rows, and {after} after it needs {needed}")
            rows[place] = rank if later else fitted
        if rows["A"] != rows["B"]:
            raise ValueError(f"A has {rows['A']} rows, and B {rows['B']}")
        if self.between and rows["A"] != rank:
            raise ValueError(f"what stands between has {rank} rows, and A {rows['A']}")

    def rows(self, rank: int, width: Width) -> int:
        first, *later = self.at("A")
        return rank if later else first.transform.rows(rank, width)

    def reach(self, rank: int, width: Width) -> int:
        reached = [self.rows(rank, width), *width]
        for place, side in (("A", width.d_in), ("B", width.d_out)):
            at_side = Width(side, _WIDE) if place == "A" else Width(_WIDE, side)
            first = self.at(place)[0]  # type: ignore[arg-type]
            reached.append(first.transform.reach(self.rank_of(first, rank), at_side))
        return min(reached)

    # Shapes and initial values ------------------------------------------------------------------

    def shared_shape(self, role: str, rank: int, widths: Sequence[int]) -> tuple[int, int]:
        step, inner = self.step_of(role)
        return step.transform.shared_shape(inner, self.rank_of(step, rank), widths)

    def fan_in(self, role: str, rank: int, widths: Sequence[int]) -> int:
        step, inner = self.step_of(role)
        return step.transform.fan_in(inner, self.rank_of(step, rank), widths)

    def own(self, rank: int, width: Width) -> Mapping[str, Own]:
        shapes = {}
        for step in self.steps:
            own = step.transform.own(self.rank_of(step, rank), width)
            shapes.update({step.owned[role]: own[role] for role in step.owned})
            if step.gate is not None and step.router is not None:
                columns = width.d_in if step.gate.of == "x" else rank
                shapes[step.router] = Own(step.count, columns, fan_in=columns)
        return shapes

    def start(self, role: str) -> Start:
        if self._gated_by(role) is not None:
            return Start("kaiming_uniform")
        step, inner = self.step_of(role)
        start = step.transform.start(inner)
        if role == self.zero_role:
            return Start("zeros")
        return Start("kaiming_uniform") if start.init == "zeros" else start

    @cached_property
    def zero_role(self) -> str | None:
        """The one tensor that starts at zero by default: the last on the way to the output."""
        order = [*self.at("between"), *self.at("B")[::-1], *self.at("A")[::-1]]
        for step in order:
            for inner, outer in reversed(step.roles.items()):
                if step.transform.start(inner).init == "zeros":
                    return outer
        # A gate may replace the coefficients that started at zero.
        return "B" if not self.linear and "B" in self.roles else None

    def zeros(self, zero: frozenset[str]) -> frozenset[str]:
        parts = set()
        for step in self.steps:
            inner_zero = frozenset(inner for inner, outer in step.roles.items() if outer in zero)
            for part in step.transform.zeros(inner_zero):
                if part in step.roles:
                    parts.add(step.roles[part])
                elif part == step.place:
                    parts.add(part)
        return frozenset(parts)

    # The factors --------------------------------------------------------------------------------

    def factor(self, role: str, tensors: Tensors, rank: int, side: int) -> Tensor | Factor:
        from bishare_dsl.transforms.factor import Mixed, as_factor

        first, *later = self.at(role)  # type: ignore[arg-type]
        fitted = first.transform.factor(
            role, first.tensors(tensors), self.rank_of(first, rank), side
        )
        if not later and not (role == "B" and self.between):
            return fitted
        factor = as_factor(fitted)
        for step in later:
            left = step.transform.mix(role, step.tensors(tensors), self.rank_of(step, rank))
            factor = Mixed(left, factor)
        if role == "B" and self.between:
            # On B, so that sites with a common A project their input once; small products come first.
            first_between, *others = self.at("between")
            product = first_between.transform.matrix(first_between.tensors(tensors), rank)
            for step in others:
                product = product @ step.transform.matrix(step.tensors(tensors), rank)
            factor = Mixed(product, factor)
        return factor

    # The update, if there is a gate --------------------------------------------------------------

    def update(self, x: Tensor, tensors: Tensors, rank: int, width: Width) -> Tensor:
        down = self._down(x, tensors, rank, width.d_in)
        signals = {"x": x, "A x": down}
        between = down
        for step in self.at("between"):
            if step.gate is None:
                between = between @ step.transform.matrix(step.tensors(tensors), rank)
            else:
                stacked = step.transform.stacked("between", step.tensors(tensors), rank, rank)
                between = expand(_coefficients(step, signals, tensors), between) @ stacked
        return self._up(between, signals, tensors, rank, width.d_out)

    def _down(self, x: Tensor, tensors: Tensors, rank: int, side: int) -> Tensor:
        """Pass the input through the steps of A: ``(..., r)``."""
        signals = {"x": x}
        z = x
        for step in self.at("A"):
            if step.first:
                z = z @ self._fitted(step, tensors, rank, side).t()
            elif step.gate is None:
                z = z @ step.transform.mix("A", step.tensors(tensors), self.rank_of(step, rank)).t()
            if step.gate is not None:
                z = gather(_coefficients(step, signals, tensors), z, step.count)
        return z

    def _up(
        self, z: Tensor, signals: Mapping[str, Tensor], tensors: Tensors, rank: int, side: int
    ) -> Tensor:
        """Pass what comes from between through the steps of B, from the last: ``(..., d_out)``."""
        for step in reversed(self.at("B")):
            if step.gate is not None:
                z = expand(_coefficients(step, signals, tensors), z)
            elif not step.first:
                z = z @ step.transform.mix("B", step.tensors(tensors), self.rank_of(step, rank))
            if step.first:
                z = z @ self._fitted(step, tensors, rank, side)
        return z

    def _fitted(self, step: PlacedStep, tensors: Tensors, rank: int, side: int) -> Tensor:
        """Return the factor of a first step as a matrix; of a gated one the matrices before their sum."""
        from bishare_dsl.transforms.factor import as_factor

        own = step.tensors(tensors)
        own_rank = self.rank_of(step, rank)
        if step.gate is not None:
            return step.transform.stacked(step.place, own, own_rank, side)
        return as_factor(step.transform.factor(step.place, own, own_rank, side)).dense()

    # Messages -----------------------------------------------------------------------------------

    def review(self, rank: int, widths: Sequence[Width]) -> Iterable[Problem]:
        """Yield the warnings of the steps, at ``("via", PLACE, INDEX, ...)``."""
        for step in self.steps:
            for problem in step.transform.review(self.rank_of(step, rank), widths):
                yield replace(problem, loc=("via", step.place, step.index, *problem.loc[1:]))

    def options(self) -> dict[str, Any]:
        """Return the steps of each place that has any."""
        options: dict[str, Any] = {}
        for place in PLACES:
            steps = [_written(step) for step in self.chain(place)]
            if steps:
                options[place] = steps
        return options

    def with_option(self, option: str, value: Any) -> Self:
        place, index, name = option.split(".")
        steps = list(self.chain(place))  # type: ignore[arg-type]
        step = steps[int(index)]
        steps[int(index)] = Step(
            transform=step.transform,
            options={**step.options, name: value},
            gate=step.gate,
            name=step.name,
        )
        chains: dict[str, tuple[Step, ...]] = {other: self.chain(other) for other in PLACES}
        chains[place] = tuple(steps)
        return type(self).model_validate(chains)

    def largest(self, option: str) -> int:
        place, index, name = option.split(".")
        return self.at(place)[int(index)].transform.largest(name)  # type: ignore[arg-type]

    def fits(self, option: str, sides: Collection[int]) -> bool:
        place, index, name = option.split(".")
        return self.at(place)[int(index)].transform.fits(name, sides)  # type: ignore[arg-type]


def _placed(place: Place, index: int, step: Step) -> PlacedStep:
    """Return a step with its transform, and the roles of its tensors in the composition."""
    transform = step.load()
    pooled: dict[str, str] = {}
    if place != "between" and index == 0:
        for role in transform.pooled:
            if role == place:
                pooled[role] = role
            elif role not in (
                "A",
                "B",
            ):  # A bank is one for both factors, and here each has its own.
                pooled[role] = f"{role}_{place}"
    private = [role for role in transform.roles if role not in transform.pooled]
    if place != "between":
        private = [role for role in private if transform.place.get(role, place) == place]
    router = None
    counted = transform.counted(place)
    if step.gate is not None and counted is not None:
        router = ROUTER if place == "between" else f"{ROUTER}_{place}"
        private = [role if role != counted.coefficients else router for role in private]
    owned = dict(zip(private, _named(step.name, private), strict=True))
    if router is not None:
        router = owned.pop(router)
    return PlacedStep(place, index, step, transform, pooled, owned, router)


def _coefficients(step: PlacedStep, signals: Mapping[str, Tensor], tensors: Tensors) -> Tensor:
    """Return the coefficients ``(..., count)`` of a step with a gate."""
    assert step.gate is not None
    assert step.router is not None
    return step.gate.coefficients(signals[step.gate.of], tensors[step.router])


def _named(name: str | None, roles: Sequence[str]) -> Iterator[str]:
    """Yield the names of a step's private tensors in the composition."""
    for role in roles:
        if name is None:
            yield role
        else:
            yield name if len(roles) == 1 else f"{name}_{role}"


def _written(step: Step) -> dict[str, Any]:
    written: dict[str, Any] = {"transform": step.transform, "options": step.options}
    if step.gate is not None:
        written["gate"] = step.gate.model_dump()
    if step.name is not None:
        written["name"] = step.name
    return written


def compose(
    a: Sequence[Step] = (), b: Sequence[Step] = (), between: Sequence[Step] = ()
) -> Composed:
    """Return the composition of chains of steps.

    Raises:
        ValueError: a step cannot stand where it does, or two steps have a tensor of one name.
    """
    return Composed(A=tuple(a), B=tuple(b), between=tuple(between))
