"""Modules that own an adapter's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bishare_dsl.plan.names import attribute

ALIGNED = 64
"""Alignment of tensors allocated by torch on a CPU, in bytes."""


class OwnedTensors(nn.Module):
    """Holds the tensors of one adapter that belong to one module: ``OWNER.bishare_tensors.ADAPTER``.

    Calling it returns the tensors in order. Code that uses a tensor *calls* its owner, so that the hooks
    of accelerate (offload) and FSDP (gather) run. Each tensor is registered only here.
    """

    def __init__(self, tensors: Mapping[str, nn.Parameter], dropout: float = 0.0):
        """Register the tensors.

        Args:
            tensors: by their names in the plan.
            dropout: the maximum over the terms that use them. It is a module so that other libraries,
                such as TRL, can find and disable dropout, also for inactive adapters.
        """
        super().__init__()
        self.names = tuple(tensors)
        self.attributes = tuple(map(attribute, tensors))
        if dropout:
            self.dropout = nn.Dropout(dropout)
        # As `register_parameter`, whose checks would take a tenth of the time of adapting.
        self._parameters.update(zip(self.attributes, tensors.values(), strict=True))

    @property
    def dropout_active(self) -> bool:
        """Whether terms that use the tensors apply dropout in training."""
        dropout = self._modules.get("dropout")
        return bool(dropout is not None and dropout.p)

    def forward(self) -> tuple[Tensor, ...]:
        parameters = self._parameters
        if tuple(parameters) == self.attributes:
            return tuple(parameters.values())  # type: ignore[arg-type]
        # The order differs, or tensors are computed, for example by a parametrization.
        return tuple(getattr(self, name) for name in self.attributes)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        # Tensors in a mapped file can be unaligned, and products of unaligned tensors round
        # differently.
        if local_metadata.get("assign_to_params_buffers"):
            for name in self._parameters:
                value = state_dict.get(prefix + name)
                if value is not None and value.device.type == "cpu" and value.data_ptr() % ALIGNED:
                    state_dict[prefix + name] = value.detach().clone()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        return "\n".join(
            f"({name}): {tuple(getattr(self, attribute(name)).shape)}" for name in self.names
        )
