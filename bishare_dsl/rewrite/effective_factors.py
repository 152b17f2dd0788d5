"""The module that gives a region its effective factors, or the tensors that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from bishare_dsl.rewrite.island import is_unwatched
from bishare_dsl.rewrite.ops import autocasts, without_autocast
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.rewritten import RegionCode
from bishare_dsl.transforms.factor import Factor


class EffectiveFactors(nn.Module):
    """A region's factors, made at each call from tensors that it calls their modules for. None lives in it.

    Nothing is kept from one call to the next, so that nothing can be out of date, whoever writes to a tensor
    and however.

    Args:
        code: of the region that calls this module; its assembly makes the factors of the sources.
        sources: where each tensor of the region lives, and its number there.
    """

    def __init__(self, code: RegionCode, sources: Sequence[tuple[OwnedTensors, int]]) -> None:
        super().__init__()
        self.code = code
        # In a tuple, where `nn.Module` does not register them: they have one owner each, and are no
        # part of the regions that use them.
        self._owned = tuple(dict.fromkeys(owned for owned, _ in sources))
        self._slots = tuple((self._owned.index(owned), number) for owned, number in sources)
        self._assemble = code.assembly.function()

    def forward(self) -> tuple[Factor, ...]:
        """Return the factors."""
        tensors = alike(self._tensors())
        # What a transform computes is small, and made in the precision it is trained in: what runs, what
        # merges and what is exported are then the same numbers.
        if not autocasts(tensors[0].device):
            return self._assemble(self, *tensors)  # type: ignore[no-any-return]
        with without_autocast(tensors[0].device):
            return self._assemble(self, *tensors)  # type: ignore[no-any-return]

    @property
    def drops(self) -> bool:
        """Whether terms drop values of their inputs."""
        return self.training and any(owned.drops for owned in self._owned)

    def _tensors(self) -> list[Tensor]:
        # A call that nobody sees is left out: with one token, it takes as long as two small products.
        given = [owned.forward() if is_unwatched(owned) else owned() for owned in self._owned]
        return [given[index][number] for index, number in self._slots]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_assemble"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._assemble = self.code.assembly.function()

    def extra_repr(self) -> str:
        return f"{len(self._slots)} tensors of {len(self._owned)} modules"


def alike(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return tensors of one dtype, the first's, on one device; those of integers stay so."""
    dtype, device = tensors[0].dtype, tensors[0].device
    for tensor in tensors:  # No generator: with one token, it would be felt.
        if tensor.dtype is not dtype or tensor.device != device:
            break
    else:
        return tensors
    dtype = next(t.dtype for t in tensors if t.is_floating_point())
    return [t.to(device, dtype if t.is_floating_point() else None) for t in tensors]
