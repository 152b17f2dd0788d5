"""The factors of all experts of a module, made together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bishare_dsl.models.weights import Weight
from bishare_dsl.rewrite.experts import experts_forward
from bishare_dsl.rewrite.region import FACTORS, TermUse
from bishare_dsl.rewrite.rewritten import GraphCode
from bishare_dsl.transforms import Transform, Width, effective_pairs, stacked
from bishare_dsl.transforms.factor import Dense, Factor

Slots = tuple[int, ...]


@dataclass(frozen=True)
class ExpertTerms:
    """The terms of one share at one map of some experts.

    Attributes:
        parameter: which keeps the map's weights.
        outputs: which of the parameter's outputs are the map's: start, stop and step.
        shapes: by role, of the tensors: a pool of narrow maps stores less than one that has wide ones, too.
        experts: the experts.
        slots: by role, which of the region's tensors each expert reads.
    """

    parameter: str
    outputs: tuple[int | None, int | None, int | None]
    share: str
    transform: Transform
    rank: int
    scale: float
    dropout: float
    width: Width
    shapes: tuple[tuple[str, tuple[int, int]], ...]
    experts: tuple[int, ...] = ()
    slots: tuple[tuple[str, Slots], ...] = ()

    @property
    def place(self) -> tuple[object, ...]:
        """What terms have in common whose rows stand in one place, for each is of other experts."""
        return self.parameter, self.outputs, self.share

    def factors(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Make ``A (experts, rows, d_in)`` and ``B (experts, rows, d_out)``."""
        given = {role: stacked([tensors[slot] for slot in slots]) for role, slots in self.slots}
        return effective_pairs(
            self.transform, given, len(self.experts), self.rank, self.width, self.scale
        )


@dataclass(frozen=True)
class ExpertsAssembly:
    """Makes the factors of a module's experts: of each part A, then B.

    Attributes:
        experts: how many there are.
        outputs: how many each parameter has.
        terms: side by side those whose rows stand below each other.
    """

    experts: int
    outputs: tuple[tuple[str, int], ...]
    terms: tuple[ExpertTerms, ...]

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """The parameters with terms, and the dropouts of these."""
        return tuple(dict.fromkeys((term.parameter, term.dropout) for term in self.terms))

    @property
    def source(self) -> str:
        """Say what is made, a line for each part."""
        lines = [f"# {name}: A and B of {self.experts} experts" for name, _ in self.parts]
        return "\n".join(lines) + "\n"

    def function(self) -> Callable[..., tuple[Factor, ...]]:
        """Return what makes the factors, of the module and the tensors of the region."""
        return lambda _, *tensors: tuple(
            Dense(f) for part in self.parts for f in self._part(part, tensors)
        )

    def _part(self, part: tuple[str, float], tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        mine = [term for term in self.terms if (term.parameter, term.dropout) == part]
        outputs = dict(self.outputs)[part[0]]
        downs, ups = [], []
        for _, group in groupby(mine, lambda term: term.place):
            made = [(term, *term.factors(tensors)) for term in group]
            rows = max(a.shape[1] for _, a, _ in made)
            wide = [(term, _widened(b, term, outputs)) for term, _, b in made]
            downs.append(reduce(torch.add, [self._of_all(a, term, rows) for term, a, _ in made]))
            ups.append(reduce(torch.add, [self._of_all(b, term, rows) for term, b in wide]))
        return _below(downs), _below(ups)

    def _of_all(self, factor: Tensor, terms: ExpertTerms, rows: int) -> Tensor:
        """Return a factor of some experts as one of all, with zeros where they have none."""
        if spare := rows - factor.shape[1]:
            factor = F.pad(factor, (0, 0, 0, spare))
        if terms.experts == tuple(range(self.experts)):
            return factor
        index = torch.tensor(terms.experts, device=factor.device)
        return factor.new_zeros(self.experts, *factor.shape[1:]).index_copy(0, index, factor)


def _widened(b: Tensor, terms: ExpertTerms, outputs: int) -> Tensor:
    """Return B with a column for each output of the parameter."""
    if b.shape[-1] == outputs:
        return b
    wide = b.new_zeros(*b.shape[:-1], outputs)
    wide[..., slice(*terms.outputs)] = b
    return wide


def _below(factors: Sequence[Tensor]) -> Tensor:
    return factors[0] if len(factors) == 1 else torch.cat(list(factors), 1)


def experts_assembly(
    module: nn.Module,
    uses: Sequence[tuple[Weight, str, TermUse]],
    shapes: Sequence[tuple[int, int]],
) -> ExpertsAssembly:
    """Put the terms of a module's experts together: those that one share adds at one map are one.

    Args:
        uses: each with the weight that it is added to and its share.
        shapes: of the region's tensors, by slot.
    """
    groups: dict[ExpertTerms, list[tuple[Weight, TermUse]]] = {}
    for weight, share, use in uses:
        outputs = slice(None) if weight.outputs is None else weight.outputs
        alike = ExpertTerms(
            weight.parameter,
            (outputs.start, outputs.stop, outputs.step),
            share,
            use.transform,
            use.rank,
            use.scale,
            use.dropout,
            Width(weight.d_in, weight.d_out),
            tuple((role, shapes[slot]) for role, slot in use.slots),
        )
        groups.setdefault(alike, []).append((weight, use))
    terms = []
    for alike, members in sorted(groups.items(), key=lambda item: str(item[0].place)):
        numbers = tuple(weight.expert or 0 for weight, _ in members)
        read = [dict(use.slots) for _, use in members]
        slots = tuple((role, tuple(of_one[role] for of_one in read)) for role in read[0])
        terms.append(replace(alike, experts=numbers, slots=slots))
    kept = {term.parameter: getattr(module, term.parameter) for term in terms}
    transposed = {weight.parameter: weight.transposed for weight, _, _ in uses}
    sides = {name: tensor.shape[2 if transposed[name] else 1] for name, tensor in kept.items()}
    experts = next(iter(kept.values())).shape[0]
    return ExpertsAssembly(experts, tuple(sides.items()), tuple(terms))


def experts_code(assembly: ExpertsAssembly) -> GraphCode:
    """Write the forward of the module."""
    source = (
        "def forward(self, *args, **kwargs):\n"
        f"    return experts_forward(self, self.{FACTORS}(), {assembly.parts!r}, args, kwargs)\n"
    )
    return GraphCode(source, {"experts_forward": experts_forward}, {}, outermost=True)
