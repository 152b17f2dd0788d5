"""Adapters of one plan that are fitted together, with shared and private tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from bishare_dsl.initial.values import draw_tensor
from bishare_dsl.plan import Plan

Variable = tuple[str, str]
"""A tensor to fit: its adapter, or ``""`` if all adapters share it, and its name in the plan."""

Values = dict[Variable, torch.Tensor]


@dataclass(frozen=True)
class Family:
    """Adapters of one plan by name. If `has_private` is false, they act as a single adapter."""

    plan: Plan
    names: tuple[str, ...]

    @property
    def has_private(self) -> bool:
        """Whether there are several adapters with private tensors."""
        return len(self.names) > 1 and len(self.plan.common) < len(self.plan.tensors)

    def variable(self, adapter: str, tensor: str) -> Variable:
        """Return the variable for a tensor of the plan in one adapter."""
        return ("" if not self.has_private or tensor in self.plan.common else adapter), tensor

    def variables(self) -> Iterator[Variable]:
        """Yield all variables, shared before private."""
        for tensor in self.plan.tensors:
            if self.variable("?", tensor.name)[0] == "":
                yield "", tensor.name
        if self.has_private:
            for adapter in self.names:
                for tensor in self.plan.tensors:
                    if tensor.name not in self.plan.common:
                        yield adapter, tensor.name

    def draw(self, seed: int) -> Values:
        """Generate float64 initial values, which are equal for all adapters."""
        drawn = {t.name: draw_tensor(t, seed).double() for t in self.plan.tensors}
        return {variable: drawn[variable[1]] for variable in self.variables()}

    def tensors(
        self, values: Mapping[Variable, torch.Tensor], adapter: str
    ) -> dict[str, torch.Tensor]:
        """Return the float32 tensors of one adapter by their names in the plan."""
        return {t.name: values[self.variable(adapter, t.name)].float() for t in self.plan.tensors}
