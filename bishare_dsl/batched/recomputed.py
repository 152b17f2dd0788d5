"""The factors of a region in a mixed batch that trains: recomputed in the backward, rather than kept.

Those of a row can take a third of its activations. Made of the adapters' tensors, which are there anyway,
they cost a few products of small matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bishare_dsl.rewrite.island import gradients_with_history
from bishare_dsl.transforms.factor import Factor, map_tensors, tensors_of

Make = Callable[[Sequence[Tensor]], tuple[Factor, ...]]
"""Makes the factors of a region, ``(adapters, rows, side)`` each, of tensors of the adapters."""


class Recomputed:
    """The factors of one call of a region.

    Args:
        make: makes them of the sources.
        sources: tensors of the adapters.
    """

    def __init__(self, make: Make, sources: Sequence[Tensor]) -> None:
        self.make, self._sources = make, sources
        self._made: tuple[Sequence[Tensor], tuple[Factor, ...]] | None = None
        self._kinds: tuple[Factor, ...] = ()

    def factors(self) -> tuple[Factor, ...]:
        """Return them, with a history that has none of what lies between."""
        if not torch.is_grad_enabled():
            return self.make(self._sources)
        tensors = iter(_Factors.apply(self, *self._sources))  # type: ignore[no-untyped-call]
        return tuple(map_tensors(kind, lambda _: next(tensors)) for kind in self._kinds)

    def again(self, number: int) -> Callable[[], Factor]:
        """Return what makes one of them again in a backward; without a history unless one is wanted."""

        def recompute() -> Factor:
            if torch.is_grad_enabled():
                return self.make(self._sources)[number]
            if self._made is None:
                self._made = self.run()
            return map_tensors(self._made[1][number], Tensor.detach)

        return recompute

    def tensors(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors of all factors, of some sources."""
        self._kinds = self.make(sources)
        found = [tensor for factor in self._kinds for tensor in tensors_of(factor)]
        self._kinds = tuple(map_tensors(kind, Tensor.detach) for kind in self._kinds)
        return found

    def run(self) -> tuple[Sequence[Tensor], tuple[Factor, ...]]:
        """Return copies of the sources that share their memory, and the factors with a history from there."""
        sources = [s.detach().requires_grad_(s.requires_grad) for s in self._sources]
        with torch.enable_grad():
            return sources, self.make(sources)

    def gradients(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the gradients of the sources, and forget what was recomputed."""
        (sources, made), self._made = self._made or self.run(), None
        wanted = [source for source in sources if source.requires_grad]
        # Some may be made of no source at all.
        pairs = zip((t for f in made for t in tensors_of(f)), grads, strict=True)
        known = [(y, dy) for y, dy in pairs if dy is not None and y.requires_grad]
        ys, dys = zip(*known, strict=True)
        found = iter(torch.autograd.grad(ys, wanted, dys, allow_unused=True))
        return [next(found) if source.requires_grad else None for source in sources]


class _Factors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recomputed: Recomputed, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.recomputed = recomputed
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*sources)  # Autograd sees whether they have been written to since.
        with torch.enable_grad():
            leaves = [s.detach().requires_grad_(s.requires_grad) for s in sources]
            made = recomputed.tensors(leaves)
        found = tuple(y.detach() for y in made)
        fixed = [y for y, of in zip(found, made, strict=True) if not of.requires_grad]
        ctx.mark_non_differentiable(*fixed)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        sources, recomputed = ctx.saved_tensors, ctx.recomputed
        if torch.is_grad_enabled():
            return None, *gradients_with_history(
                lambda *s: [t for f in recomputed.make(s) for t in tensors_of(f)],
                sources,
                ctx,
                grads,
            )
        return None, *recomputed.gradients(grads)
