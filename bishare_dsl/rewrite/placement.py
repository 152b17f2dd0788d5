"""Where the modules of an adapter belong in its model, to put them in and take them out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from torch import nn

from bishare_dsl.diagnostics import ModelError
from bishare_dsl.diagnostics.codes import rewrite as codes
from bishare_dsl.models.inspect import ADAPTER
from bishare_dsl.plan import Plan
from bishare_dsl.rewrite.effective_factors import EffectiveFactors
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.region import FACTORS
from bishare_dsl.rewrite.rewritten import RegionCode, restore_forward, set_code
from bishare_dsl.rewrite.whole import WholeTensors, insert_whole, remove_whole


@dataclass(frozen=True)
class Placement:
    """Each owner beside the tensors that it owns, each region beside its factors, and each module of which
    parameters are trained in full beside what gives these.

    Out of the model, an adapter stays in memory, and nothing that walks the model sees it. At any time one
    of a model's adapters is in it.
    """

    owned: tuple[tuple[nn.Module, OwnedTensors], ...] = ()
    regions: tuple[tuple[nn.Module, EffectiveFactors], ...] = ()
    whole: tuple[tuple[nn.Module, WholeTensors], ...] = ()

    def tensors(self) -> dict[str, nn.Parameter]:
        """Return the adapter's parameters by their names in the plan, each once."""
        return {
            name: cast(nn.Parameter, parameter)
            for _, owned in self.owned
            for name, parameter in zip(owned.names, owned._parameters.values(), strict=True)
        }

    def insert(self) -> None:
        """Put the adapter into its model, training or not as the modules do that it joins."""
        for owner, owned in self.owned:
            owned.train(owner.training)
            owner.add_module(ADAPTER, owned)
        for region, factors in self.regions:
            factors.train(region.training)
            region.add_module(FACTORS, factors)
            set_code(region, factors.code.forward)
        for module, tensors in self.whole:
            insert_whole(module, tensors)
        for model in self._sized():
            # On the instance, and without a hold on it: copies and pickles take it along.
            vars(model)["resize_token_embeddings"] = refuse_to_resize

    def remove(self) -> None:
        """Take the adapter out of its model. The factors that it keeps go: they may be large."""
        for model in self._sized():
            model.__dict__.pop("resize_token_embeddings", None)
        for module, _ in self.whole:
            remove_whole(module)
        for region, factors in self.regions:
            restore_forward(region)
            delattr(region, FACTORS)
            factors.refresh()
        for owner, _ in self.owned:
            delattr(owner, ADAPTER)

    def _sized(self) -> Iterator[nn.Module]:
        """Yield the models whose vocabulary may not change, since tensors of the adapter are as long."""
        changed = {id(module) for module, _ in (*self.regions, *self.whole)}
        models = [
            m for m in self.owned[0][0].modules() if hasattr(type(m), "resize_token_embeddings")
        ]
        if any(id(end) in changed for model in models for end in _ends(model)):
            yield from models


def _ends(model: Any) -> Iterator[nn.Module | None]:
    """Yield the embedding and the head that a model of transformers says it has."""
    for ask in (model.get_input_embeddings, model.get_output_embeddings):
        with suppress(NotImplementedError, AttributeError):
            yield ask()


def refuse_to_resize(*_: Any, **__: Any) -> NoReturn:
    """Stand in the place of `resize_token_embeddings` where an adapter is at the embedding or the head.

    Raises:
        ModelError: BS405.
    """
    raise ModelError(codes.CANNOT_RESIZE())


@dataclass(frozen=True)
class CompiledPlan:
    """A plan with the code of its regions, for one model: each with its path and the tensors it reads."""

    plan: Plan
    regions: tuple[tuple[str, RegionCode, list[str]], ...]
    notes: tuple[str, ...]


class AdapterRoot(OwnedTensors):
    """The tensors that the model itself owns, ``model.bishare``, and where the rest of the adapter is.

    Attributes:
        frozen: the base's parameters that trained before they were frozen.
        placement: of the adapter's modules. (No module: while the adapter is in the model, they are its.)
        compiled: what the placement was made from.
    """

    frozen: tuple[str, ...] = ()
    placement: Placement
    compiled: CompiledPlan
