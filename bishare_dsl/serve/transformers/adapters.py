"""All the adapters of a model in memory: the one that runs, and those that wait in banks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bishare_dsl.diagnostics import AdapterError, nearest
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.plan import Plan
from bishare_dsl.rewrite.adapt import compile_plan, place
from bishare_dsl.rewrite.placement import CompiledPlan
from bishare_dsl.serve.transformers.banks import Bank, Slot, kinds_of

if TYPE_CHECKING:
    from bishare_dsl.serve.transformers.handle import AdapterHandle


@dataclass(eq=False, slots=True)
class AdapterInMemory:
    """An adapter in memory. It has modules, and a handle, once it has been active."""

    name: str
    plan: Plan
    spec_text: str
    seed: int
    compact: bool = False
    handle: AdapterHandle | None = None
    slot: Slot | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the adapter by their names."""
        if self.handle is not None:
            return self.handle.tensors()
        assert self.slot is not None
        return self.slot.tensors()


class Adapters(Mapping[str, AdapterInMemory]):
    """The adapters of a model by name, in the order in which they came. All of its handles have it."""

    def __init__(self, model: nn.Module, compiled: CompiledPlan) -> None:
        self.model = model
        self.banks: list[Bank] = []
        self.lock = threading.RLock()
        self._compiled = [compiled]
        self._residents: dict[str, AdapterInMemory] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._residents)

    def __len__(self) -> int:
        return len(self._residents)

    def __contains__(self, name: object) -> bool:
        return name in self._residents

    def __getitem__(self, name: str) -> AdapterInMemory:
        """Return an adapter.

        Raises:
            AdapterError: no such name (BS640).
        """
        if name not in self._residents:
            raise AdapterError(codes.UNKNOWN_ADAPTER(name=name, help=nearest(name, self)))
        return self._residents[name]

    def join(self, handle: AdapterHandle) -> None:
        """Take in an adapter that has its modules already."""
        self._residents[handle.name] = AdapterInMemory(
            handle.name, handle.plan, handle.spec_text, handle.seed, handle=handle
        )

    def compiled(self, plan: Plan) -> CompiledPlan:
        """Return the code of a plan, which is made once for all plans that say the same.

        Raises:
            ModelError, SpecError: as `compile_plan` does.
        """
        known = next((code for code in self._compiled if _same(code.plan, plan)), None)
        if known is None:
            known = compile_plan(self.model, plan)
            self._compiled.append(known)
        return known

    def knows(self, plan: Plan) -> bool:
        """Tell whether an adapter of a plan has been taken in before, so that others of it fit."""
        return any(_same(code.plan, plan) for code in self._compiled)

    def load(
        self,
        name: str,
        plan: Plan,
        tensors: Mapping[str, Tensor],
        spec_text: str,
        seed: int,
        compact: bool,
    ) -> tuple[str, ...]:
        """Copy an adapter into a bank, where it waits.

        Returns:
            Notes, as `adapt` gives them, for the first adapter of a plan.

        Raises:
            ModelError, SpecError: as `compile_plan` does.
        """
        notes = () if self.knows(plan) else self.compiled(plan).notes
        plan = self.compiled(plan).plan  # One object for all that are equal.
        twin = next((r for r in self._residents.values() if r.spec_text == spec_text), None)
        resident = AdapterInMemory(name, plan, twin.spec_text if twin else spec_text, seed, compact)
        with self.lock:
            self._put(resident, tensors)
            self._residents[name] = resident
        return notes

    def handle(self, name: str, like: AdapterHandle) -> AdapterHandle:
        """Return the handle of an adapter, and make it and its modules where it has none yet.

        Raises:
            AdapterError: no such name (BS640).
        """
        resident = self[name]
        if resident.handle is None:
            with torch.inference_mode(False):  # In which it could never train.
                code = self.compiled(resident.plan)
                made = place(self.model, code, resident.tensors(), type(like))
            made.bind(self.model, resident.plan, resident.spec_text, resident.seed, name, like)
            if resident.compact:
                made.freeze_compact()
            resident.handle = made
        return resident.handle

    def handles(self) -> list[AdapterHandle]:
        """Return the handles that there are."""
        return [r.handle for r in self._residents.values() if r.handle is not None]

    def drop(self, name: str) -> AdapterHandle | None:
        """Forget an adapter, and give its handle, which somebody may have kept."""
        with self.lock:
            resident = self._residents.pop(name)
            if resident.handle is not None:
                for parameter in resident.handle.placement.tensors().values():
                    parameter.data = parameter.data.clone()
            self._give_back(resident)
            return resident.handle

    def _settle(self, handle: AdapterHandle, resident: AdapterInMemory, slot: Slot) -> None:
        """Ensure that an adapter's row holds its values, and that its parameters are views of it.

        Not where accelerate keeps the values elsewhere.
        """
        parameters = handle.placement.tensors()
        values, row = handle.tensors(), slot.tensors()
        if any(values[name] is not p or p.is_inference() for name, p in parameters.items()):
            return
        if all(
            p.data_ptr() == row[name].data_ptr() and p.dtype is row[name].dtype
            for name, p in parameters.items()
        ):
            return
        with torch.inference_mode(False):  # In which they could never train.
            slot = self._put(resident, {name: p.detach() for name, p in parameters.items()})
            for name, view in slot.tensors().items():
                parameters[name].data = view

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move or convert the adapters that wait, as `nn.Module._apply` does with parameters."""
        with self.lock, torch.no_grad():
            self.banks = [bank for bank in self.banks if bank.nbytes]
            for bank in self.banks:
                bank.convert(fn)
            for resident in self._residents.values():
                if resident.handle is not None and resident.slot is not None:
                    self._settle(resident.handle, resident, resident.slot)

    def _put(self, resident: AdapterInMemory, tensors: Mapping[str, Tensor]) -> Slot:
        """Copy values into a row of the bank that is for such tensors."""
        # Outside inference mode, where tensors would be such that no one may train.
        with torch.inference_mode(False), torch.no_grad():
            slot = self._bank(resident.plan, tensors).take()
            for name, view in slot.tensors().items():
                view.copy_(tensors[name])
        self._give_back(resident)
        resident.slot = slot
        return slot

    def _give_back(self, resident: AdapterInMemory) -> None:
        if resident.slot is not None:
            resident.slot.bank.give_back(resident.slot)

    def _bank(self, plan: Plan, tensors: Mapping[str, Tensor]) -> Bank:
        kinds = kinds_of(tensors)
        for bank in self.banks:
            if bank.kinds == kinds and _same(bank.plan, plan):
                return bank
        self.banks.append(Bank(plan, kinds))
        return self.banks[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.lock = threading.RLock()


def _same(one: Plan, other: Plan) -> bool:
    """Tell whether two plans, of one model, make the same of it, whatever they are called."""
    return one is other or (one.tensors == other.tensors and one.terms == other.terms)
