"""``model.bishare`` where a model may have several adapters, of which one is active."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self, cast

import torch
from torch import nn

from bishare_dsl.adapter.devices import devices, move_tensors
from bishare_dsl.adapter.handle import Handle
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.hooks import is_sharded
from bishare_dsl.models.inspect import ADAPTER
from bishare_dsl.plan import Plan
from bishare_dsl.serve.transformers.adapters import Adapters
from bishare_dsl.serve.transformers.mixed import MixedBatches

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AdapterHandle(Handle):
    """An adapter of a model that may have others beside it.

    That of the active adapter is ``model.bishare``. The others are in the model's memory, its copies and its
    pickles, and otherwise no part of it. A copy of the model has handles of its own.
    """

    # All handles of a model have the same.
    _adapters: Adapters
    _batches: MixedBatches

    def bind(
        self,
        model: nn.Module,
        plan: Plan,
        spec_text: str,
        seed: int,
        name: str,
        beside: AdapterHandle | None = None,
    ) -> None:
        """Make this the handle of an adapter of a model. Whoever makes the adapter does so once.

        Args:
            beside: the handle of an adapter that the model has already, and this one with it.
        """
        super().bind(model, plan, spec_text, seed, name)
        if beside is not None:
            self._adapters, self._batches = beside._adapters, beside._batches
            self.frozen = beside.frozen
        else:
            self._adapters = Adapters(model, self.compiled)
            self._batches = MixedBatches(model, self._adapters, check_mixed)
            self._adapters.join(self)

    def freeze_compact(self) -> None:
        """Let nothing train from here on: the tensors are what a compact adapter keeps of them."""
        super().freeze_compact()
        self._adapters[self.name].compact = True

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # What moves or converts the model, such as `.to()`, does so with all of its adapters.
        for other in self._adapters.handles() if self._model else ():
            if other is not self:
                for _, store in other.placement.owned:
                    nn.Module._apply(store, fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._model:
            self._adapters.apply(fn)
        return self

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the model's adapters, in the order in which they came."""
        return tuple(self._active()._adapters)

    @property
    def active_adapter(self) -> str:
        """The name of the adapter that runs, whose handle is ``model.bishare``."""
        return self._active().name

    def set_adapter(self, name: str) -> None:
        """Make another adapter the active one: ``model.bishare`` is then its handle.

        The model's parameters are then that adapter's, as they were when it was last active. Its tensors
        go where their layers are, and it trains if the model does. A forward that runs meanwhile in another
        thread, and is of no mixed batch, is of no one adapter: let it end first.

        Raises:
            AdapterError: no such name (BS640); the active adapter is disabled (BS626) or merged (BS643,
                BS629); the model is sharded (BS645); it trains, and the adapter cannot (BS637); or a mixed
                batch is open, in whichever thread (BS674).
        """
        with self._exchange("switch adapters"):
            active, resident = self._active(), self._adapters[name]
            if resident.handle is active:
                return
            active._check_free("switch adapters")
            if resident.compact and self.model.training:
                raise AdapterError(codes.COMPACT_FOR_GOOD())
            chosen = self._adapters.handle(name, active)
            move_tensors(chosen.placement.tensors(), devices(chosen.plan, self.model))
            active.placement.remove()
            chosen.placement.insert()

    def delete_adapter(self, name: str) -> None:
        """Drop an adapter that is not the active one.

        Raises:
            AdapterError: no such name (BS640), or the active adapter (BS642); a mixed batch is open, in
                whichever thread (BS674).
        """
        with self._exchange("delete an adapter"):
            if self._adapters[name].handle is self._active():
                raise AdapterError(codes.DELETES_ACTIVE(name=name))
            if (dropped := self._adapters.drop(name)) is not None:
                dropped._forget()

    def add(
        self,
        name: str,
        plan: Plan,
        tensors: Mapping[str, torch.Tensor],
        spec_text: str,
        seed: int,
        compact: bool = False,
    ) -> tuple[str, ...]:
        """Take another adapter in beside the model's, which is not active; its tensors are copied.

        Returns:
            Notes, as `adapt` gives them.

        Raises:
            AdapterError: the name is in use (BS641), or as `_check_free` does.
            ModelError, SpecError: as `compile_plan` does.
        """
        if name in self._adapters:
            raise AdapterError(codes.NAME_IN_USE(name=name))
        self._check_free("load another one")
        return self._adapters.load(name, plan, tensors, spec_text, seed, compact)

    @contextmanager
    def batch(self, adapter_names: Sequence[str | None]) -> Iterator[None]:
        """Open a block in which each row of the model's input has an adapter of its own, in this thread.

        ``adapter_names`` for `model()` and `model.generate()` makes such a block of the one
        call. The model must not train: nothing gets a gradient.

        Args:
            adapter_names: for each row an adapter's name, or None (``"__base__"`` in PEFT) for the base.

        Raises:
            AdapterError: as `MixedBatches.batch` does.
        """
        with self._batches.open(adapter_names):
            yield

    def _check_free(self, action: str) -> None:
        """Check that the active adapter's regions run as they were written, and may be exchanged.

        Raises:
            AdapterError: the adapter is not active (BS644), disabled (BS626) or merged (BS643, BS629), or
                the model is sharded (BS645).
        """
        self._here(action)
        self.check_apart(action)

    def check_apart(self, action: str) -> None:
        """Check that the adapter, which is active, is apart from the base, in this process alone, and runs.

        Raises:
            AdapterError: it is disabled (BS626) or merged (BS643, BS629), or the model is sharded (BS645).
        """
        if self._disabled:
            raise AdapterError(codes.DISABLED(action=action))
        if self._merged is not None:
            code = codes.STILL_MERGED if self._merged.kept else codes.NOT_KEPT
            raise AdapterError(code(action=action))
        if any(is_sharded(region) for region, _ in self.placement.regions):
            raise AdapterError(codes.SHARDED(action=action))

    @contextmanager
    def _exchange(self, action: str) -> Iterator[None]:
        with super()._exchange(action), self._batches.closed(action):
            yield

    def _state(self) -> str:
        return super()._state() if self._active() is self else "not active"

    def _active(self) -> AdapterHandle:
        return cast(AdapterHandle, self.model.get_submodule(ADAPTER))

    def _here(self, action: str) -> PreTrainedModel:
        if (active := self._active()) is not self:
            raise AdapterError(codes.NOT_ACTIVE(action=action, name=self.name, active=active.name))
        self._batches.check_closed(action)
        return super()._here(action)

    def _leave(self, model: PreTrainedModel) -> PreTrainedModel:
        batches, handles = self._batches, self._adapters.handles()
        super()._leave(model)
        batches.leave()
        for other in handles:
            if other is not self:
                other._forget()
        return model

    def _forget(self) -> None:
        super()._forget()
        del self._adapters, self._batches


def check_mixed(model: nn.Module) -> None:
    """Check that nothing about the active adapter of a model keeps rows from having others.

    Raises:
        AdapterError: it trains parameters in full (BS687), or as `AdapterHandle.check_apart` does.
    """
    active = cast(AdapterHandle, model.get_submodule(ADAPTER))
    active.check_apart("run a mixed batch")
    if active.plan.trained:
        path = active.plan.trained[0].parameter
        raise AdapterError(codes.MIXED_WHOLE(name=active.name, path=path))
