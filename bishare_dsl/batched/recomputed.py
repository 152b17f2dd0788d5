"""Recompute the factors of a region in the backward of a mixed batch, instead of saving them.

A row's factors can take a third as much memory as its activations. Computing them from the adapters'
tensors costs only a few products of small matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bishare_dsl.rewrite.island import gradients_with_history
from bishare_dsl.transforms.factor import Factor, map_tensors, tensors_of

Make = Callable[[Sequence[Tensor]], tuple[Factor, ...]]
"""Computes the factors of a region, ``(adapters, rows, side)`` each, from tensors of the adapters."""


class Recomputed:
    """The factors of one call of a region.

    Args:
        make: computes the factors from the sources.
        sources: tensors of the adapters.
    """

    def __init__(self, make: Make, sources: Sequence[Tensor]) -> None:
        self.make = make
        self._sources = sources
        self._made: tuple[Sequence[Tensor], tuple[Factor, ...]] | None = None
        self._kinds: tuple[Factor, ...] = ()

    def factors(self) -> tuple[Factor, ...]:
        """Return the factors, with an autograd history that saves no intermediate results."""
        if not torch.is_grad_enabled():
            return self.make(self._sources)
        tensors = iter(_Factors.apply(self, *self._sources))  # type: ignore[no-untyped-call]
        return tuple(map_tensors(kind, lambda _: next(tensors)) for kind in self._kinds)

    def recompute(self, number: int) -> Callable[[], Factor]:
        """Return a function that recomputes a factor in the backward, with a history if grad is enabled."""

        def recompute() -> Factor:
            if torch.is_grad_enabled():
                return self.make(self._sources)[number]
            if self._made is None:
                self._made = self.run()
            return map_tensors(self._made[1][number], Tensor.detach)

        return recompute

    def tensors(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors of all factors computed from some sources."""
        self._kinds = self.make(sources)
        tensors = [tensor for factor in self._kinds for tensor in tensors_of(factor)]
        self._kinds = tuple(map_tensors(kind, Tensor.detach) for kind in self._kinds)
        return tensors

    def run(self) -> tuple[Sequence[Tensor], tuple[Factor, ...]]:
        """Return aliases of the sources, and the factors with a history that starts there."""
        sources = [s.detach().requires_grad_(s.requires_grad) for s in self._sources]
        with torch.enable_grad():
            return sources, self.make(sources)

    def gradients(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the gradients of the sources, and discard the recomputed factors."""
        (sources, factors), self._made = self._made or self.run(), None
        wanted = [source for source in sources if source.requires_grad]
        # Some tensors may not depend on any source.
        pairs = zip((t for f in factors for t in tensors_of(f)), grads, strict=True)
        known = [(y, dy) for y, dy in pairs if dy is not None and y.requires_grad]
        ys, dys = zip(*known, strict=True)
        gradients = iter(torch.autograd.grad(ys, wanted, dys, allow_unused=True))
        return [next(gradients) if source.requires_grad else None for source in sources]


class _Factors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recomputed: Recomputed, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.recomputed = recomputed
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*sources)  # Autograd detects whether they have been modified since.
        with torch.enable_grad():
            leaves = [s.detach().requires_grad_(s.requires_grad) for s in sources]
            factors = recomputed.tensors(leaves)
        values = tuple(y.detach() for y in factors)
        fixed = [y for y, of in zip(values, factors, strict=True) if not of.requires_grad]
        ctx.mark_non_differentiable(*fixed)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        sources = ctx.saved_tensors
        recomputed = ctx.recomputed
        if torch.is_grad_enabled():
            return None, *gradients_with_history(
                lambda *s: [t for f in recomputed.make(s) for t in tensors_of(f)],
                sources,
                ctx,
                grads,
            )
        return None, *recomputed.gradients(grads)
