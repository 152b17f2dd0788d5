"""Parameters of the base that are trained in full: tensors of the adapter replace them.

The base's parameter stays in the module, frozen. The module's class gets a property of the same name,
which overrides it for every reader: the base's forward, a rewritten forward, compiled code, or a loss
that reads the head's weight.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from bishare_dsl.rewrite.owned import OwnedTensors

WHOLE = "bishare_whole"
"""The child of a module that returns the replacements of its parameters."""


class TrainedInFull(nn.Module):
    """Returns the replacements of a module's parameters, which other modules own.

    Args:
        sources: the module of each parameter's tensor, and the tensor's index there.
    """

    def __init__(self, sources: Mapping[str, tuple[OwnedTensors, int]]) -> None:
        super().__init__()
        # In a tuple, so that `nn.Module` does not register them.
        self._owned = tuple(owned for owned, _ in sources.values())
        self._numbers = {name: (i, number) for i, (name, (_, number)) in enumerate(sources.items())}

    @property
    def parameters_of_base(self) -> tuple[str, ...]:
        """The names of the replaced parameters."""
        return tuple(self._numbers)

    def forward(self, name: str, parameter: Tensor) -> Tensor:
        """Return the replacement of ``parameter``, in its shape and dtype."""
        place, number = self._numbers[name]
        owned: tuple[Tensor, ...] = self._owned[place]()
        return owned[number].view(parameter.shape).to(parameter.dtype)
