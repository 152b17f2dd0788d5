"""The modules in which an adapter's tensors live."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bishare_dsl.plan.names import attribute

ALIGNED = 64
"""Of how many bytes the addresses are multiples at which torch lays tensors on a CPU."""


class OwnedTensors(nn.Module):
    """Holds the tensors of one adapter that belong to one module: ``OWNER.bishare_tensors.ADAPTER``.

    Calling it gives them, in order: whoever uses a tensor *calls* the module that owns it, so that the
    hooks of accelerate (offload) and FSDP (gather) fire. A tensor is registered here and nowhere else.
    """

    def __init__(self, tensors: Mapping[str, nn.Parameter], dropout: float = 0.0):
        """Own tensors.

        Args:
            tensors: by their names in the plan.
            dropout: the largest of the terms that use them. It stands in a module, by which others find and
                turn off whatever drops, as TRL does; of an adapter that does not run, too.
        """
        super().__init__()
        self.names = tuple(tensors)
        self.attributes = tuple(map(attribute, tensors))
        if dropout:
            self.dropout = nn.Dropout(dropout)
        for name, tensor in tensors.items():
            self.register_parameter(attribute(name), tensor)

    @property
    def drops(self) -> bool:
        """Whether terms that use the tensors drop values of their inputs in training."""
        dropout = self._modules.get("dropout")
        return bool(dropout is not None and dropout.p)

    def forward(self) -> tuple[Tensor, ...]:
        own = self._parameters
        if tuple(own) == self.attributes:
            return tuple(own.values())  # type: ignore[arg-type]
        # Some are in another order, or given by something else: a parametrization, say.
        return tuple(getattr(self, name) for name in self.attributes)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        # A tensor of a mapped file lies at any address, and a product of it rounds otherwise than one of
        # the same numbers where torch lays them.
        if local_metadata.get("assign_to_params_buffers"):
            for name in self._parameters:
                given = state_dict.get(prefix + name)
                if given is not None and given.device.type == "cpu" and given.data_ptr() % ALIGNED:
                    state_dict[prefix + name] = given.detach().clone()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        return "\n".join(
            f"({name}): {tuple(getattr(self, attribute(name)).shape)}" for name in self.names
        )
