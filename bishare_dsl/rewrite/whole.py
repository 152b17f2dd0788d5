"""Parameters of the base that are trained in full: a tensor of the adapter stands in the place of each.

The base's own stays where it is, frozen. The module's class gets a property of its name, which any forward
reads in its stead: that of the base, a rewritten one, compiled code, or a loss that reads a head's weight.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from bishare_dsl.rewrite.owned import OwnedTensors

WHOLE = "bishare_whole"
"""The child of a module that gives the tensors in the place of its parameters."""


class TrainedInFull(nn.Module):
    """Gives the tensors that stand in the place of a module's parameters. None lives in it.

    Args:
        sources: for each parameter where its tensor lives, and its number there.
    """

    def __init__(self, sources: Mapping[str, tuple[OwnedTensors, int]]) -> None:
        super().__init__()
        # In a tuple, where `nn.Module` does not register them.
        self._owned = tuple(owned for owned, _ in sources.values())
        self._numbers = {name: (i, number) for i, (name, (_, number)) in enumerate(sources.items())}

    @property
    def parameters_of_base(self) -> tuple[str, ...]:
        """The names of the parameters."""
        return tuple(self._numbers)

    def forward(self, name: str, kept: Tensor) -> Tensor:
        """Return what stands in the place of the parameter ``kept``, in its shape and dtype."""
        place, number = self._numbers[name]
        owned: tuple[Tensor, ...] = self._owned[place]()
        return owned[number].view(kept.shape).to(kept.dtype)
