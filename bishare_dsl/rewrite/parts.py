"""Where the modules of an adapter belong in its model, to put them in and take them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import nn

from bishare_dsl.models.inspect import TENSORS
from bishare_dsl.plan import Plan
from bishare_dsl.rewrite.effective_factors import EffectiveFactors
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.region import FACTORS
from bishare_dsl.rewrite.rewritten import RegionCode, restore_forward, set_code, set_whole
from bishare_dsl.rewrite.whole import WHOLE, TrainedInFull


@dataclass(frozen=True)
class AdapterParts:
    """Each owner beside the tensors that it owns, each region beside its factors, and each module of which
    parameters are trained in full beside what gives these.

    The tensors of every adapter stay in the model, each under the adapter's name; the regions run the code of
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
        """Return where each tensor is, by its name in the plan, and its number there."""
        stores = (store for _, store in self.owned)
        return {name: (store, i) for store in stores for i, name in enumerate(store.names)}

    def join(self, name: str) -> None:
        """Put the tensors into the model as ``OWNER.bishare_tensors.NAME``."""
        for owner, owned in self.owned:
            if TENSORS not in owner._modules:
                owner.add_module(TENSORS, nn.ModuleDict())
            owned.train(owner.training)
            cast(nn.ModuleDict, owner.get_submodule(TENSORS))[name] = owned

    def leave(self, name: str) -> None:
        """Take the tensors out of the model."""
        for owner, _ in self.owned:
            adapters = cast(nn.ModuleDict, owner.get_submodule(TENSORS))
            del adapters[name]
            if not adapters:
                _take_out(owner, TENSORS)

    def insert(self) -> None:
        """Let the adapter run: its regions train or not as their modules do."""
        for region, factors in self.regions:
            region.add_module(FACTORS, factors.train(region.training))
        for module, tensors in self.whole:
            module.add_module(WHOLE, tensors)
        self.enable(True)

    def remove(self) -> None:
        """Let the model run as its base, and take out what `insert` put in."""
        self.enable(False)
        for region, _ in self.regions:
            _take_out(region, FACTORS)
        for module, _ in self.whole:
            _take_out(module, WHOLE)

    def enable(self, enabled: bool) -> None:
        """Let the adapter run, or the base's own forwards and parameters, as if there were no adapter."""
        for region, factors in self.regions:
            if enabled:
                set_code(region, factors.code.forward)
            else:
                restore_forward(region)
        for module, tensors in self.whole:
            set_whole(module, tensors.parameters_of_base if enabled else ())


def _take_out(module: nn.Module, name: str) -> None:
    """Take a child out of a module. PEFT does so while it walks over the children, which stay as they are."""
    module._modules = {key: child for key, child in module._modules.items() if key != name}


@dataclass(frozen=True)
class PlanCode:
    """A plan with the code of its regions, for one model: each with its path and the tensors it reads."""

    plan: Plan
    regions: tuple[tuple[str, RegionCode, list[str]], ...]
    notes: tuple[str, ...]


class AdapterRoot(nn.Module):
    """``model.bishare``: where the parts of the adapter that runs are. It owns no tensor.

    Attributes:
        frozen: the base's parameters that trained before they were frozen.
        parts: what the adapter that runs has put into the model.
        compiled: what the parts were made from.
    """

    frozen: tuple[str, ...] = ()
    parts: AdapterParts
    compiled: PlanCode
