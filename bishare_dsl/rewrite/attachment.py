"""Where the modules of an adapter hang in its model, to take them out and put them in again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import nn

from bishare_dsl.models.inspect import ADAPTER
from bishare_dsl.rewrite.factors import Factors
from bishare_dsl.rewrite.install import install_program, uninstall
from bishare_dsl.rewrite.program import FACTORS
from bishare_dsl.rewrite.store import Store


@dataclass(frozen=True)
class Attachment:
    """Each store of an adapter beside the module that owns it, and each region beside its factors.

    Out of the model, an adapter stays in memory, and nothing that walks the model sees it. At any time one
    of a model's adapters is in it.
    """

    stores: tuple[tuple[nn.Module, Store], ...] = ()
    regions: tuple[tuple[nn.Module, Factors], ...] = ()

    def tensors(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters by their names in the plan, each once."""
        return {
            name: cast(nn.Parameter, parameter)
            for _, store in self.stores
            for name, parameter in zip(store.names, store._parameters.values(), strict=True)
        }

    def attach(self) -> None:
        """Put the adapter into its model, training or not as the modules do that it joins."""
        for owner, store in self.stores:
            store.train(owner.training)
            owner.add_module(ADAPTER, store)
        for region, factors in self.regions:
            factors.train(region.training)
            region.add_module(FACTORS, factors)
            install_program(region, factors.region)

    def detach(self) -> None:
        """Take the adapter out of its model. The factors that it keeps go: they may be large."""
        for region, factors in self.regions:
            uninstall(region)
            delattr(region, FACTORS)
            factors.refresh()
        for owner, _ in self.stores:
            delattr(owner, ADAPTER)
