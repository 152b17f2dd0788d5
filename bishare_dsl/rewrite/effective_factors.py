"""The module that gives a region its effective factors, and remembers them while nothing changes."""

from __future__ import annotations

import ctypes
import os
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

# Takes a quarter of the time of `torch.equal` for tensors as small as these; a model has many. `PyDLL`,
# since to give up the interpreter's lock would take as long again.
_memcmp = ctypes.PyDLL("msvcrt" if os.name == "nt" else None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

_Source = tuple[dict[str, Any], str, nn.Parameter]
"""A tensor that factors are made of: where it is registered, under which name, and itself."""


class _Snapshot:
    """Sources as they are now, to the bit.

    Counting changes, as autograd does, is not enough: fused optimizers, collectives on ``p.detach()``,
    numpy's views and ``.data`` write without being counted.
    """

    def __init__(self, sources: Sequence[_Source]) -> None:
        # With its data, for as long as that lives no other tensor has its address.
        self._places = [(*s, s[2].data_ptr(), s[2].detach()) for s in sources]
        self._here = [s[2] for s in sources if s[2].device.type == "cpu"]
        self._elsewhere = [s[2] for s in sources if s[2].device.type != "cpu"]
        self._copies = [tensor.detach().clone() for tensor in self._here]
        self._bytes = [
            (tensor.data_ptr(), copy.data_ptr(), copy.nbytes)
            for tensor, copy in zip(self._here, self._copies, strict=True)
        ]
        self._copy = _joined(self._elsewhere)

    def holds(self) -> bool:
        """Tell whether the sources are what they were."""
        for parameters, name, tensor, address, _ in self._places:
            if parameters.get(name) is not tensor or tensor.data_ptr() != address:
                return False
        for address, copy, size in self._bytes:
            if _memcmp(address, copy, size):
                return False
        # Once for all of them: each comparison waits for the device.
        return not self._elsewhere or torch.equal(_joined(self._elsewhere), self._copy)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors] or [torch.empty(0)])


@dataclass(frozen=True)
class _Kept:
    """Factors in some dtype, or each in its own, and what they were made of."""

    factors: tuple[Tensor, ...]
    dtype: torch.dtype | None
    sources: _Snapshot


class EffectiveFactors(nn.Module):
    """A region's factors, made from tensors that it calls their modules for. None lives in it.

    In eval mode and without gradients they are kept, in the dtype of the activations, for as long as every
    source is the tensor that it was, at its place, with the same bytes in it.

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
        """Give the factors.

        Args:
            x: what the region reads. With gradients, and where nothing can be kept, its dtype does not
                matter: who applies a factor casts it.
        """
        if torch.compiler.is_compiling() or _is_captured():
            return self._make()
        if self.training or torch.is_grad_enabled():
            self._kept = None
            return self._make()
        dtype = x.dtype if x is not None and x.is_floating_point() else None
        kept = self._kept  # Once: another thread may forget it meanwhile.
        if kept is not None and kept.dtype is dtype and kept.sources.holds():
            return kept.factors
        # Before the factors are made: what is changed meanwhile is seen the next time.
        sources = self._sources()
        snapshot = None if sources is None else _Snapshot(sources)
        factors = self._make()
        if snapshot is not None:
            factors = tuple(factor if dtype is None else factor.to(dtype) for factor in factors)
            self._kept = _Kept(factors, dtype, snapshot)
        return factors

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

    def _sources(self) -> list[_Source] | None:
        """Give the sources, or None where one of them is not in memory of its own between two calls."""
        found: list[_Source] = []
        for index, number in dict.fromkeys(self._slots):
            owner, name = self._owned[index], attribute(self._owned[index].names[number])
            tensor = owner._parameters.get(name)  # None where it is pruned or parametrised.
            if (
                is_hooked(owner)  # Offloaded: the tensors come and go with each call.
                or is_sharded(owner)  # Gathered for each call.
                or type(tensor) is not nn.Parameter
                or tensor.is_meta
                or not tensor.is_contiguous()
            ):
                return None
            found.append((owner._parameters, name, tensor))
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_assemble", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._assemble = self.code.assembly.function()
        self._kept = None

    def extra_repr(self) -> str:
        return f"{len(self._slots)} tensors of {len(self._owned)} modules"


def _is_captured() -> bool:
    """Tell whether a CUDA graph is being recorded: it is to make the factors each time that it is played."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
