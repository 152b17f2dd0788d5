"""The modules in which an adapter's tensors live."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from bishare_dsl.plan.names import attribute


class OwnedTensors(nn.Module):
    """Holds the tensors of an adapter that belong to one module, as its child ``bishare``.

    Calling it gives them, in order: whoever uses a tensor *calls* the module that owns it, so that the
    hooks of accelerate (offload) and FSDP (gather) fire. A tensor is registered here and nowhere else.
    """

    def __init__(self, tensors: Mapping[str, nn.Parameter]):
        super().__init__()
        self.names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_parameter(attribute(name), tensor)

    def forward(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, attribute(name)) for name in self.names)

    def __getstate__(self) -> dict[str, Any]:
        # A parameter may be a view of memory that adapters share: its pickle would hold all of it.
        own = {
            name: nn.Parameter(p.detach().clone(), p.requires_grad)
            for name, p in self._parameters.items()
            if p is not None and type(p) is nn.Parameter and p.untyped_storage().nbytes() > p.nbytes
        }
        return self.__dict__ | {"_parameters": self._parameters | own}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Each parameter by itself, so that an optimizer that is copied along has the copies.
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        state = self.__getstate__() | {"_parameters": self._parameters}
        made.__setstate__(copy.deepcopy(state, memo))  # type: ignore[no-untyped-call]
        return made

    def extra_repr(self) -> str:
        return "\n".join(
            f"({name}): {tuple(getattr(self, attribute(name)).shape)}" for name in self.names
        )
