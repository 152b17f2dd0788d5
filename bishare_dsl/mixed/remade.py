"""The factors of a region in a mixed batch that trains: made again for the backward, rather than kept.

Those of a row can take a third of its activations. Made of the adapters' tensors, which are there anyway,
they cost a few products of small matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bishare_dsl.rewrite.island import gradients_with_history

Make = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
"""Makes the factors of a region, ``(adapters, rows, width)`` each, of tensors of the adapters."""


class Remade:
    """The factors of one call of a region.

    Args:
        make: makes them of the sources.
        sources: tensors of the adapters.
    """

    def __init__(self, make: Make, sources: Sequence[Tensor]) -> None:
        self.make, self._sources = make, sources
        self._again: tuple[Sequence[Tensor], tuple[Tensor, ...]] | None = None

    def factors(self) -> tuple[Tensor, ...]:
        """Return them, with a history that has none of what lies between."""
        if not torch.is_grad_enabled():
            return self.make(self._sources)
        return _Factors.apply(self, *self._sources)  # type: ignore[no-any-return, no-untyped-call]

    def later(self, number: int) -> Callable[[], Tensor]:
        """Return what makes one of them again, for a backward."""
        return partial(self._made_again, number)

    def _made_again(self, number: int) -> Tensor:
        """Make all once for a backward, or with a history for who wants one, and return one of them."""
        if torch.is_grad_enabled():
            return self.make(self._sources)[number]
        if self._again is None:
            self._again = self.run()
        return self._again[1][number].detach()

    def run(self) -> tuple[Sequence[Tensor], tuple[Tensor, ...]]:
        """Return copies of the sources that share their memory, and the factors with a history from there."""
        sources = [s.detach().requires_grad_(s.requires_grad) for s in self._sources]
        with torch.enable_grad():
            return sources, self.make(sources)

    def gradients(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the gradients of the sources, and forget what was made again."""
        (sources, made), self._again = self._again or self.run(), None
        wanted = [source for source in sources if source.requires_grad]
        # Some may be made of no source at all.
        pairs = zip(made, grads, strict=True)
        known = [(y, dy) for y, dy in pairs if dy is not None and y.requires_grad]
        ys, dys = zip(*known, strict=True)
        found = iter(torch.autograd.grad(ys, wanted, dys, allow_unused=True))
        return [next(found) if source.requires_grad else None for source in sources]


class _Factors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, remade: Remade, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.remade = remade
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*sources)  # Autograd sees whether they have been written to since.
        if all(source.requires_grad for source in sources):
            return remade.make(sources)
        made = remade.run()[1]
        found = tuple(y.detach() for y in made)
        fixed = [y for y, of in zip(found, made, strict=True) if not of.requires_grad]
        ctx.mark_non_differentiable(*fixed)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        sources = ctx.saved_tensors
        if torch.is_grad_enabled():
            make = ctx.remade.make
            return None, *gradients_with_history(lambda *s: make(s), sources, ctx, grads)
        return None, *ctx.remade.gradients(grads)
