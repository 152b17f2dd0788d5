"""The modules that own an adapter's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from bishare_dsl.plan.names import attribute

if TYPE_CHECKING:
    from bishare_dsl.rewrite.attachment import Attachment


class Store(nn.Module):
    """Owns tensors of an adapter, under the name ``bishare`` of the module they belong to.

    Calling it gives them, in order: whoever uses a tensor *calls* the module that owns it, so that the
    hooks of accelerate (offload) and FSDP (gather) fire. A tensor is registered here and nowhere else.
    """

    # At the model itself: the base's parameters that trained before they were frozen, and the adapter's
    # modules. (No module: its own modules are the model's while the adapter is in it.)
    frozen: tuple[str, ...] = ()
    attachment: Attachment

    def __init__(self, tensors: Mapping[str, nn.Parameter]):
        super().__init__()
        self.names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_parameter(attribute(name), tensor)

    def forward(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, attribute(name)) for name in self.names)

    def extra_repr(self) -> str:
        return "\n".join(
            f"({name}): {tuple(getattr(self, attribute(name)).shape)}" for name in self.names
        )
