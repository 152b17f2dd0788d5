"""The module that gives a region its effective factors, and remembers them while nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bishare_dsl.models.hooks import is_hooked, is_sharded
from bishare_dsl.rewrite.ops import without_autocast
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.rewritten import RegionCode


@dataclass(frozen=True)
class _Kept:
    """Factors in some dtype, or each in its own, and the values of what they were made of."""

    factors: tuple[Tensor, ...]
    dtype: torch.dtype | None
    values: Tensor


class EffectiveFactors(nn.Module):
    """A region's factors, made from tensors that it calls their modules for. None lives in it.

    In eval mode and without gradients they are kept, in the dtype of the activations, for as long as what
    they are made of has the same values.

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
        """Return the factors.

        Args:
            x: what the region reads. With gradients, and where nothing can be kept, its dtype does not
                matter: who applies a factor casts it.
        """
        if torch.compiler.is_compiling() or _is_captured():
            return self._make()
        if self.training or torch.is_grad_enabled():
            self._kept = None
            return self._make()
        if any(is_hooked(owned) or is_sharded(owned) for owned in self._owned):
            return self._make()  # Offloaded or gathered: the tensors come and go with each call.
        dtype = x.dtype if x is not None and x.is_floating_point() else None
        # Counting changes, as autograd does, is not enough: fused optimizers, collectives on ``p.detach()``,
        # numpy's views and ``.data`` write without being counted. Read before factors are made: what is
        # changed meanwhile is seen the next time.
        tensors = self._tensors()
        values = torch.cat([tensor.detach().flatten() for tensor in tensors])
        kept = self._kept  # Once: another thread may forget it meanwhile.
        if kept is None or kept.dtype is not dtype or not _same(values, kept.values):
            factors = (factor.to(dtype or factor.dtype) for factor in self._make(tensors))
            kept = self._kept = _Kept(tuple(factors), dtype, values)
        return kept.factors

    @property
    def drops(self) -> bool:
        """Whether terms drop values of their inputs."""
        if not self.training:
            return False
        dropouts = (owned._modules.get("dropout") for owned in self._owned)
        return any(dropout is not None and dropout.p for dropout in dropouts)

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

    def _tensors(self) -> list[Tensor]:
        """Return the tensors of the region, by slot."""
        given = [owned() for owned in self._owned]
        return [given[index][number] for index, number in self._slots]

    def _make(self, tensors: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        tensors = tensors or self._tensors()
        # Factors are small, and made in the precision they are trained in: what runs, what merges and
        # what is exported are then the same numbers.
        with without_autocast(tensors[0].device):
            return tuple(self._assemble(self, *tensors))

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_assemble", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._assemble = self.code.assembly.function()
        self._kept = None

    def extra_repr(self) -> str:
        return f"{len(self._slots)} tensors of {len(self._owned)} modules"


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype is other.dtype and one.device == other.device and torch.equal(one, other)


def _is_captured() -> bool:
    """Tell whether a CUDA graph is being recorded: it is to make the factors each time that it is played."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
