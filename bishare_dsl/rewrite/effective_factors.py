"""The module that gives a region its effective factors, and remembers them while nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bishare_dsl.models.hooks import is_hooked, is_sharded
from bishare_dsl.plan.names import attribute
from bishare_dsl.rewrite.ops import without_autocast
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.rewritten import RegionCode

_Watched = tuple[dict[str, Any], str, nn.Parameter, int, int, Tensor]
"""A source: where it is registered, under which name, itself, its version, its address and its data."""


@dataclass(frozen=True)
class _Kept:
    """Factors in some dtype, or each in its own; and the sources as they were when these were made."""

    factors: tuple[Tensor, ...]
    dtype: torch.dtype | None
    watched: list[_Watched]

    def is_valid(self, dtype: torch.dtype | None) -> bool:
        if dtype is not self.dtype:
            return False
        for parameters, name, tensor, version, address, _ in self.watched:
            if (
                parameters.get(name) is not tensor
                or tensor._version != version
                or tensor.data_ptr() != address
                or tensor.grad is not None
            ):
                return False
        return True


class EffectiveFactors(nn.Module):
    """A region's factors, made from tensors that it calls their modules for. None lives in it.

    Without gradients the factors are kept, in the dtype of the activations, and made again when a source
    is another tensor, lies elsewhere or was changed in place. Writing through ``.data`` is the one change
    that torch does not count: `refresh`, a switch between training and evaluation, or any forward with
    gradients sees to it. Neither are the steps of fused optimizers counted, so that nothing is kept beside
    gradients.

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
        self._kept: _Kept | None = None

    def forward(self, x: Tensor | None = None) -> tuple[Tensor, ...]:
        """The factors.

        Args:
            x: what the region reads. With gradients, and where nothing can be kept, its dtype does not
                matter: who applies a factor casts it.
        """
        if torch.compiler.is_compiling():
            return self._make()
        if torch.is_grad_enabled():
            self._kept = None
            return self._make()
        dtype = x.dtype if x is not None and x.is_floating_point() else None
        if self._kept is None or not self._kept.is_valid(dtype):
            self._kept = None  # What cannot be kept is made each time.
            factors = self._make()
            if (watched := self._watch()) is None:
                return factors
            factors = tuple(factor if dtype is None else factor.to(dtype) for factor in factors)
            self._kept = _Kept(factors, dtype, watched)
        return self._kept.factors

    def refresh(self) -> None:
        """Forget the factors that are kept."""
        self._kept = None

    def train(self, mode: bool = True) -> EffectiveFactors:
        self.refresh()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EffectiveFactors:
        # `.to()` and its like give a parameter other data, and may come back to an old address.
        self.refresh()
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def _make(self) -> tuple[Tensor, ...]:
        tensors = [owned() for owned in self._owned]
        sources = [tensors[index][number] for index, number in self._slots]
        # Factors are small, and made in the precision they are trained in: what runs, what merges and
        # what is exported are then the same numbers.
        with without_autocast(sources[0].device):
            return tuple(self._assemble(self, *sources))

    def _watch(self) -> list[_Watched] | None:
        """The sources as they are now, or None where a change of them could not be seen."""
        watched = []
        for index, number in dict.fromkeys(self._slots):
            owner, name = self._owned[index], attribute(self._owned[index].names[number])
            tensor = owner._parameters[name]
            if (
                is_hooked(owner)  # Offloaded: the tensors come and go with each call.
                # FSDP gathers into tensors whose changes it does not count.
                or is_sharded(owner)
                or type(tensor) is not nn.Parameter
                or tensor.is_meta
                or tensor.is_inference()
                # A step may follow, and fused optimizers' changes are not counted.
                or tensor.grad is not None
            ):
                return None
            state = (tensor._version, tensor.data_ptr())
            # The data too: as long as it lives, no other tensor has its address.
            watched.append((owner._parameters, name, tensor, *state, tensor.detach()))
        return watched

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_assemble", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._assemble = self.code.assembly.function()
        self._kept = None

    def extra_repr(self) -> str:
        return f"{len(self._slots)} tensors of {len(self._owned)} modules"
