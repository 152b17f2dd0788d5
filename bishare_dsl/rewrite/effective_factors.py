"""The module that computes a region's effective factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from bishare_dsl.rewrite.island import is_unwatched
from bishare_dsl.rewrite.ops import without_autocast
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.rewritten import RegionCode
from bishare_dsl.transforms.factor import Factor


class EffectiveFactors(nn.Module):
    """Computes a region's factors on each call, from tensors that other modules own.

    Factors are rebuilt on every call; there is no cache to invalidate.

    Args:
        code: of the region that calls this module; its assembly makes the factors from the sources.
        sources: the module of each of the region's tensors, and the tensor's index there.
    """

    def __init__(self, code: RegionCode, sources: Sequence[tuple[OwnedTensors, int]]) -> None:
        super().__init__()
        self.code = code
        # In a tuple, so that `nn.Module` does not register them: each has one owner and is not part
        # of the regions that use it.
        self._owned = tuple(dict.fromkeys(owned for owned, _ in sources))
        self._slots = tuple((self._owned.index(owned), number) for owned, number in sources)
        self._assemble = code.assembly.function()
        self._constants = tuple(f"constant_{i}" for i in range(len(code.constants)))
        for name, constant in zip(self._constants, code.constants, strict=True):
            owned, number = sources[0]
            device = owned.get_parameter(owned.attributes[number]).device
            moved = constant if device.type == "meta" else constant.to(device)
            self.register_buffer(name, moved, persistent=False)

    def forward(self) -> tuple[Factor, ...]:
        """Return the factors."""
        tensors = promote_to_one_dtype(self._tensors())
        # Transforms are cheap, so they run in the dtype of training: running, merging and exporting
        # then use the same numbers.
        with without_autocast(tensors[0].device):
            return self._assemble(self, *tensors)  # type: ignore[no-any-return]

    @property
    def dropout_active(self) -> bool:
        """Whether dropout is active in some terms."""
        return self.training and any(owned.dropout_active for owned in self._owned)

    def _tensors(self) -> list[Tensor]:
        # Skip calls without hooks: with one token, a call takes as long as two small products.
        by_owner = [owned.forward() if is_unwatched(owned) else owned() for owned in self._owned]
        tensors = [by_owner[index][number] for index, number in self._slots]
        if self._constants:
            tensors += [self.get_buffer(name) for name in self._constants]
        return tensors

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_assemble"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._assemble = self.code.assembly.function()


def assembly_function(code: RegionCode) -> Callable[..., tuple[Factor, ...]]:
    """Return a function of a module and the region's tensors that computes the factors.

    It supplies the constants of the code, in the dtype and on the device of the tensors.
    """
    assemble = code.assembly.function()
    if not code.constants:
        return assemble

    def with_constants(module: nn.Module | None, *tensors: Tensor) -> tuple[Factor, ...]:
        count = len(tensors)
        promoted = promote_to_one_dtype([*tensors, *code.constants])
        factors: tuple[Factor, ...] = assemble(module, *tensors, *promoted[count:])
        return factors

    return with_constants


def promote_to_one_dtype(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return tensors on one device and in the first floating-point dtype; integers keep their dtype."""
    dtype = tensors[0].dtype
    device = tensors[0].device
    for tensor in tensors:  # Not a generator, whose overhead is noticeable with one token.
        if tensor.dtype is not dtype or tensor.device != device:
            break
    else:
        return tensors
    dtype = next(t.dtype for t in tensors if t.is_floating_point())
    return [t.to(device, dtype if t.is_floating_point() else None) for t in tensors]
