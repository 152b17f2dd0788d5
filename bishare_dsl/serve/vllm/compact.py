"""Compact mode: each plan has slots that hold only the adapters' tensors.

Each library has separate slots, and its shared tensors are stored once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bishare_dsl.batched.bank import Slots
from bishare_dsl.batched.grouping import Batch, Step, group_tokens
from bishare_dsl.batched.layer import LayerMagnitudes, LayerTerms, Outputs
from bishare_dsl.convert.effective import effective_factors
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.rewrite.magnify import ratio_of_lengths
from bishare_dsl.serve.vllm.folder import Stamp, read_any, stamp_of
from bishare_dsl.serve.vllm.frozen import FrozenCache
from bishare_dsl.serve.vllm.private import (
    LoRAModel,
    LRUCacheLoRAModelManager,
    layer_of,
    layers_of,
    local_bias,
    local_inputs,
    local_outputs,
    set_kernels,
    weight_products,
)

if TYPE_CHECKING:
    from bishare_dsl.plan import Plan
    from bishare_dsl.serve.vllm.plans import Plans


class SlotLoRA(LoRAModel):
    """An adapter in host memory; ``packed`` is None while it is in a slot.

    ``number`` identifies its plan and library. An empty adapter has neither.
    """

    def __init__(
        self,
        lora_id: int,
        stamp: Stamp | None = None,
        number: int = -1,
        packed: Tensor | None = None,
    ):
        super().__init__(lora_id, 1, {})
        self.stamp = stamp
        self.number = number
        self.packed = packed


class CompactManager(LRUCacheLoRAModelManager):
    """vLLM's adapter manager, with `Slots` for the adapters of each plan.

    Args:
        plans: the served plans.
        vllm_config: vLLM's config.
        settings: the other arguments of vLLM's manager.
    """

    _wrapping = False
    modules: dict[str, Any]

    def __init__(self, plans: Plans, *, vllm_config: Any, **settings: Any):
        self.plans = plans
        self._vllm_config = vllm_config
        self.banks: dict[int, Slots] = {}
        self.steps: dict[int, Step] = {}
        self.batches: dict[int, Batch] = {}
        self._frozen = FrozenCache(vllm_config.model_config.model)
        self._permanent: frozenset[int] = frozenset()
        self._awaited: SlotLoRA | None = None
        super().__init__(vllm_config=vllm_config, **settings)

    def read(self, lora_id: int, folder: str) -> SlotLoRA:
        """Read an adapter folder.

        Raises:
            AdapterError: see `read_any`; or vLLM cannot adapt one of its layers (BS652), its plan has no
                slots (BS650, BS657), its frozen tensors differ (BS653), or a weight that a magnitude
                scales cannot be read (BS623).
        """
        stamp = stamp_of(folder)
        read = read_any(folder, self.plans.base, self._frozen.tensors)
        number = self.plans.number_of(folder, read)
        tensors = read.tensors()
        if number not in self.banks:
            # Steps run in inference mode, but `write` updates the slots outside of it too.
            with torch.inference_mode(False):
                self._add_bank(number, tensors)
        packed = self._pack(folder, number, tensors)
        self._awaited = SlotLoRA(lora_id, stamp, number, packed)
        return self._awaited

    def plan_of(self, lora_id: int) -> Plan:
        """Return the plan of a loaded adapter."""
        return self.plans.held[self._registered_adapters[lora_id].number].plan

    def write(self, lora_id: int, tensors: Mapping[str, Tensor]) -> None:
        """Replace the tensors of a loaded adapter, given by their names in its plan.

        Raises:
            AdapterError: the frozen or the library's shared tensors differ (BS653), or a weight that a
                magnitude scales cannot be read (BS623).
        """
        lora = self._registered_adapters[lora_id]
        bank = self.banks[lora.number]
        packed = self._pack(f"adapter {lora_id}", lora.number, tensors)
        lora.stamp = None  # It no longer matches its folder.
        if lora_id in self.lora_index_to_id:
            bank.write_slot(self.lora_index_to_id.index(lora_id), packed)
        else:
            lora.packed = packed

    def create_empty(self, lora_id: int) -> SlotLoRA:
        """Create an adapter that adds nothing."""
        return SlotLoRA(lora_id)

    def _add_bank(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        plan, library = self.plans.held[number]
        layers = layers_of(self.model, [path for path, terms in plan.terms_of.items() if terms])
        for name, parts in layers.items():
            if name not in self._kernels:
                raise AdapterError(codes.LAYER_NOT_ADAPTED(site=parts[0].path))
        dtype = self.lora_config.lora_dtype
        shares = library is not None
        bank = Slots(plan, self.lora_slots, tensors, dtype, self.device, library=shares)
        site = {site.path: site for site in plan.sites}
        for name, parts in layers.items():
            kernels = self._kernels[name]
            sites = {part.number: site[part.path] for part in parts}
            widths = {number: site.d_out for number, site in sites.items()}
            places = local_outputs(kernels.layer, widths)
            outputs = [Outputs(site.path, *places[number]) for number, site in sites.items()]
            inputs = local_inputs(kernels.layer, site[parts[0].path].d_in)
            kernels.serve(number, bank, outputs, inputs)
        self.steps[number] = Step(bank, self.max_num_batched_tokens)
        self.banks[number] = bank

    def _pack(self, what: str, number: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """Pack an adapter's tensors for a slot; all others must equal those that the bank shares.

        Raises:
            AdapterError: a tensor differs (BS653), or a magnitude scales a weight that is quantised and
                cannot be read (BS623).
        """
        bank = self.banks[number]
        for name, value in bank.common.items():
            if not torch.equal(tensors[name].to(value), value):
                raise AdapterError(codes.OTHER_FROZEN(folder=what, name=name))
        scaled = self._kernels.values() if bank.layout.changes else ()
        changes = {n: c for kernels in scaled for n, c in kernels.changes(number, tensors).items()}
        return bank.pack({**tensors, **changes})

    def _drop_banks(self) -> None:
        """Free the slots and shared tensors of libraries without loaded adapters."""
        used = {lora.number for lora in self._registered_adapters.cache.values()} | self._permanent
        used |= {self._awaited.number} if self._awaited else set()
        for number in self.banks.keys() - used:
            if self.plans.held[number].library is not None:
                del self.banks[number], self.steps[number]
                self.batches.pop(number, None)
                for kernels in self._kernels.values():
                    kernels.drop(number)

    # Called by vLLM -------------------------------------------------------------------------------

    @property
    def lora_slots(self) -> int:
        # No slots while layers are wrapped, so that vLLM allocates no memory for plain LoRA.
        return 0 if self._wrapping else super().lora_slots

    def _create_lora_modules(self) -> None:
        self._wrapping = True
        super()._create_lora_modules()
        self._wrapping = False
        # vLLM would give factors to the layers in `modules` when an adapter becomes active.
        layers = self.modules
        self.modules = {}
        self._kernels = {name: Kernels(name, self, layer) for name, layer in layers.items()}
        for name, kernels in self._kernels.items():
            set_kernels(self._vllm_config, name, kernels.layer, kernels)
        for folder in self.plans.folders:
            self.read(1, folder)
        self._permanent = frozenset(self.banks)
        self._awaited = None

    def create_dummy_lora(self, lora_id: int, *_: Any) -> LoRAModel:
        return self.create_empty(lora_id)

    def _create_merged_loras_inplace(self, lora_model: LoRAModel) -> None:
        """Do nothing: there are no factors to merge."""

    def add_adapter(self, lora: LoRAModel) -> bool:
        added: bool = super().add_adapter(lora)
        self._awaited = None
        self._drop_banks()  # Evicted adapters are gone by now.
        return added

    def remove_adapter(self, lora_id: int) -> bool:
        removed: bool = super().remove_adapter(lora_id)
        self._drop_banks()
        return removed

    def remove_all_adapters(self) -> None:
        super().remove_all_adapters()
        self._drop_banks()

    def activate_adapter(self, lora_id: int) -> bool:
        newly: bool = super().activate_adapter(lora_id)
        lora = self._registered_adapters[lora_id]
        if newly and lora.packed is not None:
            self.banks[lora.number].write_slot(self.lora_index_to_id.index(lora_id), lora.packed)
            lora.packed = None
        return newly

    def _deactivate_adapter(self, lora_id: int) -> None:
        lora = self._registered_adapters.cache.get(lora_id)
        if lora_id in self.lora_index_to_id and lora is not None and lora.number >= 0:
            lora.packed = self.banks[lora.number].read_slot(self.lora_index_to_id.index(lora_id))
        super()._deactivate_adapter(lora_id)

    def _set_adapter_mapping(self, mapping: Any) -> None:
        super()._set_adapter_mapping(mapping)
        # Reading the LRU cache itself would count as a use and change the order of eviction.
        registered = self._registered_adapters.cache
        used = {lora_id for lora_id in mapping.index_mapping if lora_id}
        self.batches = {}
        for plan, bank in self.banks.items():
            own = {
                lora_id: self.lora_index_to_id.index(lora_id)
                for lora_id in used
                if registered[lora_id].number == plan
            }
            slots = [own.get(lora_id, -1) for lora_id in mapping.index_mapping]
            if self.device.type != "cpu":
                self.steps[plan].write(slots)
            elif own:
                self.batches[plan] = group_tokens(bank, slots)
            else:  # Each plan would keep the factors of its last batch, beside the slots' limit.
                bank.keep_copies(())


class _Served(NamedTuple):
    """A plan in a layer.

    Attributes:
        with_magnitude: its outputs with a magnitude.
        inputs: those of `Kernels.serve`.
    """

    number: int
    terms: LayerTerms | None
    magnitudes: LayerMagnitudes | None
    with_magnitude: Sequence[Outputs]
    inputs: Tensor | None


class Kernels:
    """Replaces vLLM's LoRA kernels in a layer: applies the terms and magnitudes of each plan there.

    On a CPU, tokens are grouped by adapter. Elsewhere, steps may be recorded as graphs, so terms run in
    torch operations that suit recording.
    """

    def __init__(self, name: str, manager: CompactManager, layer: Any):
        self.name = name
        self.layer = layer
        self._manager = manager
        self._plans: list[_Served] = []

    def serve(
        self, number: int, bank: Slots, outputs: Sequence[Outputs], inputs: Tensor | None
    ) -> None:
        """Register a plan that has terms or magnitudes in this layer.

        Args:
            number: of the plan.
            bank: of its adapters.
            outputs: its sites in this layer.
            inputs: indices of this process's inputs in the sites' input; None for all.
        """
        plan = bank.layout.plan
        terms: LayerTerms | None = None
        magnitudes: LayerMagnitudes | None = None
        scaled = [part for part in outputs if part.path in bank.layout.changes]
        outputs = [part for part in outputs if plan.rows(part.path)]
        if outputs:
            terms = LayerTerms(bank, outputs, inputs)
        if scaled:
            magnitudes = LayerMagnitudes(bank, scaled, local_bias(self.layer))
        self._plans.append(_Served(number, terms, magnitudes, scaled, inputs))

    def changes(self, number: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute ``g - 1 (1, d_out)`` of a plan's magnitudes that depend on the layer's weight.

        Args:
            number: of the plan.
            tensors: of an adapter, by name.

        Returns:
            The values by their names in `Layout.changes`. Only this process's outputs are computed.
        """
        plan = self._manager.plans.held[number].plan
        layout = self._manager.banks[number].layout
        changes: dict[str, Tensor] = {}
        site = {site.path: site for site in plan.sites}
        for served in (served for served in self._plans if served.number == number):
            scaled = [
                part for part in served.with_magnitude if layout.changes[part.path] not in tensors
            ]
            if not scaled:
                continue
            pairs = [
                effective_factors(plan, tensors, site[part.path], scaled=True) for part in scaled
            ]
            down = torch.cat([a for a, _ in pairs])
            squares, products = weight_products(self.layer, down, served.inputs, scaled[0].path)
            products_of = products.split([len(a) for a, _ in pairs])
            for part, (a, b), along in zip(scaled, pairs, products_of, strict=True):
                own = slice(None) if part.site_indices is None else part.site_indices.cpu()
                term = plan.magnitude(part.path)
                place = part.place
                assert term is not None
                mu = tensors[term.tensors["mu"]].float()
                ratio = ratio_of_lengths(squares[place], along[:, place], a, b[:, own])
                change = torch.zeros_like(mu)
                change[:, own] = (1 + mu[:, own]) * ratio - 1
                changes[layout.changes[part.path]] = change
        return changes

    def drop(self, number: int) -> None:
        """Remove a plan."""
        self._plans = [served for served in self._plans if served.number != number]

    def add_lora_linear(self, y: Tensor, x: Tensor, *_: Any, **__: Any) -> None:
        """Apply the batch's adapters to ``y (tokens, d_out)``, the output for ``x (tokens, d_in)``."""
        if torch.compiler.is_compiling():
            torch.ops.bishare.add_terms(y, x, self.name)
        else:
            self.add(y, x)

    def add(self, y: Tensor, x: Tensor) -> None:
        """Do the same outside a compiled graph."""
        manager = self._manager
        for served in self._plans:
            step = manager.steps[served.number]
            if (on_cpu := manager.device.type == "cpu") and served.number not in manager.batches:
                continue
            batch = manager.batches[served.number] if on_cpu else step.batch(len(x))
            if served.terms is not None:
                served.terms.add(y, x if on_cpu else step.masked(x), batch)
            if served.magnitudes is not None:
                served.magnitudes.apply(y, batch.rows)


@torch.library.custom_op("bishare::add_terms", mutates_args=("y",))
def add_terms(y: Tensor, x: Tensor, layer: str) -> None:
    """Run `Kernels.add` of a layer as one opaque operation of a compiled graph."""
    layer_of(layer).add(y, x)


@add_terms.register_fake
def _(y: Tensor, x: Tensor, layer: str) -> None:
    return None
