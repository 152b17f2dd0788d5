"""Modules of an adapter with their positions in the model, to insert and remove them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import nn

from bishare_dsl.models.site import TENSORS
from bishare_dsl.plan import Plan
from bishare_dsl.rewrite.effective_factors import EffectiveFactors
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.region import FACTORS
from bishare_dsl.rewrite.rewritten import RegionCode, change, restore_forward, set_code
from bishare_dsl.rewrite.whole import WHOLE, TrainedInFull


@dataclass(frozen=True)
class AdapterParts:
    """Modules of the model, each with its part of an adapter: tensors, factors, or full replacements.

    The tensors of every adapter stay in the model under the adapter's name; the regions run the code of
    one adapter at a time.
    """

    owned: tuple[tuple[nn.Module, OwnedTensors], ...] = ()
    regions: tuple[tuple[nn.Module, EffectiveFactors], ...] = ()
    whole: tuple[tuple[nn.Module, TrainedInFull], ...] = ()

    def tensors(self) -> dict[str, nn.Parameter]:
        """Return the adapter's parameters by their names in the plan, each once."""
        places = self.sources().items()
        return {name: store.get_parameter(store.attributes[i]) for name, (store, i) in places}

    def sources(self) -> dict[str, tuple[OwnedTensors, int]]:
        """Return the module of each tensor and its index there, by the tensor's name in the plan."""
        stores = (store for _, store in self.owned)
        return {name: (store, i) for store in stores for i, name in enumerate(store.names)}

    def join(self, name: str) -> None:
        """Add the tensors to the model as ``OWNER.bishare_tensors.NAME``."""
        for owner, owned in self.owned:
            if TENSORS not in owner._modules:
                owner.add_module(TENSORS, nn.ModuleDict())
            owned.train(owner.training)
            cast(nn.ModuleDict, owner.get_submodule(TENSORS))[name] = owned

    def leave(self, name: str) -> None:
        """Remove the tensors from the model."""
        for owner, _ in self.owned:
            adapters = cast(nn.ModuleDict, owner.get_submodule(TENSORS))
            del adapters[name]
            if not adapters:
                _take_out(owner, TENSORS)

    def insert(self) -> None:
        """Insert and run the adapter; its regions take the training mode of their modules."""
        for region, factors in self.regions:
            region.add_module(FACTORS, factors.train(region.training))
        for module, tensors in self.whole:
            module.add_module(WHOLE, tensors)
        self.enable(True)

    def remove(self) -> None:
        """Run the model as its base, and undo `insert`."""
        self.enable(False)
        for region, _ in self.regions:
            _take_out(region, FACTORS)
        for module, _ in self.whole:
            _take_out(module, WHOLE)

    def enable(self, enabled: bool) -> None:
        """Run the adapter or, if not ``enabled``, the base's own forwards and parameters."""
        for region, factors in self.regions:
            if enabled:
                set_code(region, factors.code.forward)
            else:
                restore_forward(region)
        for module, tensors in self.whole:
            change(module, names=tensors.parameters_of_base if enabled else ())


def _take_out(module: nn.Module, name: str) -> None:
    """Remove a child of a module without changing the dict of children, over which PEFT may be iterating."""
    module._modules = {key: child for key, child in module._modules.items() if key != name}


@dataclass(frozen=True)
class PlanCode:
    """A plan with the code of its regions for one model: the path, code and tensor names of each."""

    plan: Plan
    regions: tuple[tuple[str, RegionCode, list[str]], ...]
    notes: tuple[str, ...]


class AdapterRoot(nn.Module):
    """``model.bishare``: holds the parts of the running adapter, but owns no tensor.

    Attributes:
        frozen: parameters of the base that were trainable before they were frozen.
        parts: inserted into the model by the running adapter.
        compiled: the code of these parts.
    """

    frozen: frozenset[str] = frozenset()
    parts: AdapterParts
    compiled: PlanCode
