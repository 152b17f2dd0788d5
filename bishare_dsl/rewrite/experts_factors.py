"""Compute the factors of all experts of a module together."""

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
from bishare_dsl.transforms import Transform, Width, effective_pairs, stack_or_share
from bishare_dsl.transforms.factor import Dense, Factor

Slots = tuple[int, ...]


@dataclass(frozen=True)
class ExpertTerms:
    """The terms of one share at the same map of several experts.

    Attributes:
        parameter: contains the map's weights.
        outputs: start, stop and step of the map's outputs within the parameter's.
        shapes: of the tensors, by role; they differ between pools of narrow maps and pools with wide ones.
        experts: the experts.
        slots: by role, the region's tensor that each expert reads.
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
        """Terms with equal keys occupy the same rows, for disjoint experts."""
        return self.parameter, self.outputs, self.share

    def factors(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute ``A (experts, rows, d_in)`` and ``B (experts, rows, d_out)``."""
        stacked = {
            role: stack_or_share([tensors[slot] for slot in slots]) for role, slots in self.slots
        }
        return effective_pairs(
            self.transform, stacked, len(self.experts), self.rank, self.width, self.scale
        )


@dataclass(frozen=True)
class ExpertsAssembly:
    """Computes the factors of a module's experts: A, then B, of each part.

    Attributes:
        experts: the number of experts.
        outputs: the number of outputs of each parameter.
        terms: sorted so that terms of the same rows are adjacent.
    """

    experts: int
    outputs: tuple[tuple[str, int], ...]
    terms: tuple[ExpertTerms, ...]

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """The parameters with terms, and their dropouts."""
        return tuple(dict.fromkeys((term.parameter, term.dropout) for term in self.terms))

    @property
    def source(self) -> str:
        """Describe each part on a line."""
        lines = [f"# {name}: A and B of {self.experts} experts" for name, _ in self.parts]
        return "\n".join(lines) + "\n"

    def function(self) -> Callable[..., tuple[Factor, ...]]:
        """Return a function of the module and the region's tensors that computes the factors."""
        return lambda _, *tensors: tuple(
            Dense(f) for part in self.parts for f in self._part(part, tensors)
        )

    def _part(self, part: tuple[str, float], tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        terms = [term for term in self.terms if (term.parameter, term.dropout) == part]
        outputs = dict(self.outputs)[part[0]]
        downs = []
        ups = []
        for _, group in groupby(terms, lambda term: term.place):
            pairs = [(term, *term.factors(tensors)) for term in group]
            rows = max(a.shape[1] for _, a, _ in pairs)
            wide = [(term, _widened(b, term, outputs)) for term, _, b in pairs]
            downs.append(reduce(torch.add, [self._of_all(a, term, rows) for term, a, _ in pairs]))
            ups.append(reduce(torch.add, [self._of_all(b, term, rows) for term, b in wide]))
        return torch.cat(downs, 1), torch.cat(ups, 1)

    def _of_all(self, factor: Tensor, terms: ExpertTerms, rows: int) -> Tensor:
        """Extend a factor to all experts, with zeros for those without the term."""
        if spare := rows - factor.shape[1]:
            factor = F.pad(factor, (0, 0, 0, spare))
        if terms.experts == tuple(range(self.experts)):
            return factor
        index = torch.tensor(terms.experts, device=factor.device)
        return factor.new_zeros(self.experts, *factor.shape[1:]).index_copy(0, index, factor)


def _widened(b: Tensor, terms: ExpertTerms, outputs: int) -> Tensor:
    """Extend B to a column for each output of the parameter."""
    if b.shape[-1] == outputs:
        return b
    wide = b.new_zeros(*b.shape[:-1], outputs)
    wide[..., slice(*terms.outputs)] = b
    return wide


def experts_assembly(
    module: nn.Module,
    uses: Sequence[tuple[Weight, str, TermUse]],
    shapes: Sequence[tuple[int, int]],
) -> ExpertsAssembly:
    """Group the terms of a module's experts: one share's terms at the same map become one.

    Args:
        uses: each with its weight and its share.
        shapes: the shapes of the region's tensors, by slot.
    """
    groups: dict[ExpertTerms, list[tuple[Weight, TermUse]]] = {}
    for weight, share, use in uses:
        outputs = slice(None) if weight.outputs is None else weight.outputs
        group = ExpertTerms(
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
        groups.setdefault(group, []).append((weight, use))
    terms = []
    for group, members in sorted(groups.items(), key=lambda item: str(item[0].place)):
        numbers = tuple(weight.expert or 0 for weight, _ in members)
        slots_of = [dict(use.slots) for _, use in members]
        slots = tuple((role, tuple(of_one[role] for of_one in slots_of)) for role in slots_of[0])
        terms.append(replace(group, experts=numbers, slots=slots))
    parameters = {term.parameter: getattr(module, term.parameter) for term in terms}
    transposed = {weight.parameter: weight.transposed for weight, _, _ in uses}
    sides = {
        name: tensor.shape[2 if transposed[name] else 1] for name, tensor in parameters.items()
    }
    experts = next(iter(parameters.values())).shape[0]
    return ExpertsAssembly(experts, tuple(sides.items()), tuple(terms))


def experts_code(assembly: ExpertsAssembly) -> GraphCode:
    """Generate the forward of the module."""
    source = (
        "def forward(self, *args, **kwargs):\n"
        f"    return experts_forward(self, self.{FACTORS}(), {assembly.parts!r}, args, kwargs)\n"
    )
    return GraphCode(source, {"experts_forward": experts_forward}, {}, outermost=True)
