"""PEFT's tuner layer of a model: its adapters, which of them run, and switching between them.

It is a single tuner layer for all adapters of a model. PEFT, transformers and TRL switch, disable and
delete adapters through its methods, which have PEFT's names. `Handle` adds merging and saving.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from types import FunctionType
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from torch.utils.hooks import RemovableHandle

from bishare_dsl.adapted.adapter import Adapter, DisabledShares, check_unscaled
from bishare_dsl.adapted.interrupts import CHANGING, ended_by, uninterrupted
from bishare_dsl.adapted.merge import Merged
from bishare_dsl.adapted.own_methods import BATCHING, RESIZING, TYING, put_methods
from bishare_dsl.batched.batches import MixedBatches
from bishare_dsl.diagnostics import AdapterError, Problem, nearest
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.folder.devices import devices, move_tensors
from bishare_dsl.folder.fingerprint import Fingerprint, base_changes, fingerprint
from bishare_dsl.models.hooks import FUSED_HEAD, is_partitioned, is_sharded
from bishare_dsl.models.site import ADAPTER
from bishare_dsl.plan import Plan
from bishare_dsl.plan.together import name_of, plan_together, share_names
from bishare_dsl.rewrite.adapt import compile_plan, connect, place
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.parts import AdapterParts, AdapterRoot, PlanCode
from bishare_dsl.rewrite.rewritten import base_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bishare_dsl.folder.config import AdapterConfig

_BY_CALL = frozenset({"enable_adapters"})


class TunerLayer(AdapterRoot, BaseTunerLayer):
    """The adapters of a model, of which one runs; the tensors of all are in the model.

    Attributes:
        adapters: by name, in order of addition.
        active: the names of the running adapters.
    """

    adapter_layer_names = ("by_adapter",)
    other_param_names = ()
    cast_input_dtype_enabled = False  # Never cast the input of a term.

    # PEFT expects the weight of a wrapped layer. This layer wraps none.
    weight = property()
    bias = property()

    adapters: dict[str, Adapter]
    active: tuple[str, ...] = ()
    # In a tuple, so that `nn.Module` does not register the model as a child of its child.
    _model: tuple[PreTrainedModel, ...] = ()
    _running: Adapter | None = None
    _merged: Merged | None = None
    _halfway: bool = False
    _before_merge: tuple[str, ...] = ()
    _disabled: frozenset[object] = frozenset()
    """The open blocks, and the calls, that disable the adapter."""
    _fingerprint: Fingerprint | None = None
    _mixed: MixedBatches | None = None
    _hooks: tuple[RemovableHandle, ...] = ()

    def bind(self, model: nn.Module, plan: Plan, spec_text: str, seed: int, name: str) -> None:
        """Attach this handle to the first adapter that was put into a model; call this once."""
        self._model = (cast("PreTrainedModel", model),)
        sources = self.parts.sources()
        first = Adapter(name, plan, spec_text, seed, self.compiled, self.parts, sources)
        self.adapters = {name: first}
        self.active = (name,)
        self._running = first
        put_methods(model, RESIZING, TYING, BATCHING)
        inner = getattr(model, "base_model", None)  # As in `model.model(...)`.
        called: list[nn.Module] = [model]
        if isinstance(inner, nn.Module) and inner is not model and not _takes_names(model):
            called.append(inner)
        hooks = [
            module.register_forward_pre_hook(_check_names, with_kwargs=True) for module in called
        ]
        hooks.append(model.register_forward_pre_hook(_check_head, with_kwargs=True))
        self._hooks = tuple(hooks)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to set what a method sets, such as ``scale``: nothing would read it."""
        if hasattr(type(self), f"set_{name}"):
            raise AttributeError(f"call `set_{name}`: nothing reads an attribute `{name}`")
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        """List what users call and read first, without torch's and PEFT's."""
        names: set[str] = set()
        for owner in type(self).__mro__:
            if issubclass(owner, TunerLayer):
                for name, member in vars(owner).items():
                    if isinstance(member, property | FunctionType) and member.__doc__:
                        names.add(name)
        return sorted(names)

    @property
    def running(self) -> Adapter:
        """The running adapter; several running together are combined into one.

        Raises:
            AdapterError: none is running, because the last was deleted (BS627).
        """
        if self._running is None:
            raise AdapterError(codes.UNLOADED())
        return self._running

    @property
    def plan(self) -> Plan:
        """The plan of the running adapter."""
        return self.running.plan

    @property
    def spec_text(self) -> str:
        """The text of the running adapter's spec."""
        return self.running.spec_text

    @property
    def seed(self) -> int:
        """The seed of the running adapter."""
        return self.running.seed

    @property
    def name(self) -> str:
        """The name of the running adapter."""
        return self.running.name

    @property
    def model(self) -> PreTrainedModel:
        """The adapted model.

        Raises:
            AdapterError: the adapter was unloaded (BS627).
        """
        if not self._model:
            raise AdapterError(codes.UNLOADED())
        return self._model[0]

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode, like any module.

        Raises:
            AdapterError: a mixed batch is open (BS674).
        """
        if mode and self._running is not None:
            try:
                with self._switching("train"):
                    pass
            except AdapterError:
                self.model.eval()  # The other modules of the model are already in training mode.
                raise
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Reject copying or pickling a disabled adapter, because the copy could not be re-enabled.

        Raises:
            AdapterError: it, or one of its shares, is disabled (BS626).
        """
        self._require_enabled("copy the model")
        self._require_all_shares("copy the model")
        return super().__getstate__()  # type: ignore[no-any-return, no-untyped-call]

    @property
    def merged_adapters(self) -> list[str]:  # type: ignore[override]
        """The names of the adapters currently merged into the base's weights."""
        return [] if self._merged is None else [*self.active]

    @property
    def active_adapter(self) -> list[str]:
        """The names of the running adapters."""
        return [*self.active]

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Refuse PEFT's `convert_to_lora`, which approximates the update of a layer by an SVD.

        Raises:
            AdapterError: always, with the exact way (BS669).
        """
        help = 'call `model.bishare.export("OUT")`, which writes an exact LoRA of PEFT'
        raise AdapterError(codes.LORA_ALONE(function="convert_to_lora", help=help))

    @property
    def disabled(self) -> bool:
        """Whether the model currently runs as its base."""
        return bool(self._disabled)

    disable_adapters = disabled  # PEFT's name.

    @property
    def by_adapter(self) -> nn.ModuleDict:
        """Each adapter's trainable parameters, for PEFT's reports."""
        trainable = nn.ModuleDict()
        for name, adapter in self.adapters.items():
            tensor = adapter.plan.tensor
            parameters = adapter.parts.tensors().items()
            trainable[name] = nn.ParameterList(p for n, p in parameters if tensor[n].trainable)
        return trainable

    def fingerprint(self) -> Fingerprint | None:
        """Return the fingerprint of the base, or None if its weights are not here.

        It is computed once: only merging changes the base under its adapters.
        """
        if self._fingerprint is None and not self.merged:
            with suppress(Exception):  # A quantiser may raise anything, and a save must not fail.
                self._fingerprint = fingerprint(self.model)
        return self._fingerprint

    def base_changes(self, config: AdapterConfig) -> list[Problem]:
        """Warn if an adapter was saved on another base (BS620)."""
        return base_changes(config.fingerprint, config.fingerprint and self.fingerprint())

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield the adapter's parameters, each once, wherever they are in the model, for an optimizer.

        The handle itself owns none: without ``recurse`` it yields nothing.
        """
        if recurse:
            for name in self.active:
                yield from self.adapters[name].parts.tensors().values()

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """Enable or disable training of adapters' tensors.

        Raises:
            AdapterError: no such name (BS640).
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for adapter in [self[name] for name in names]:
            adapter.set_trainable(requires_grad)

    def enable_adapters(self, enabled: bool) -> None:
        """Disable or enable the adapter; repeated calls do not nest.

        Inside a block of `disable_adapter` the adapter stays disabled until the block ends.

        Raises:
            AdapterError: as `disable_adapter`.
        """
        if enabled:
            self._set_enabled("enable the adapter", ended=_BY_CALL)
        else:
            self._set_enabled("disable the adapter", begun=_BY_CALL)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Run the model as its base inside the block, merged or not; blocks may be nested.

        The adapter is disabled in all threads, from the start of the first block to the end of the last.

        Raises:
            AdapterError: the adapter was merged without keeping the base (BS629), or a mixed batch is open
                (BS674).
        """
        token = frozenset({object()})
        with ended_by(lambda: self._set_enabled("enable the adapter", ended=token)):
            self._set_enabled("disable the adapter", begun=token)
            yield

    def _set_enabled(
        self, action: str, begun: Set[object] = frozenset(), ended: Set[object] = frozenset()
    ) -> None:
        """Run the model as its base while there is a reason, and as adapted after the last has ended.

        Args:
            action: for messages.
            begun: blocks and calls that disable the adapter from now on.
            ended: those that do so no longer.
        """
        reasons = self._disabled - ended | begun
        if reasons == self._disabled:
            return
        with self._switching(action):
            if bool(reasons) != self.disabled:
                if not self.disabled:
                    self._to_base(action)
                elif self._merged is None:
                    self.parts.enable(True)
                else:
                    self._merged.swap(self.model)
                for _, wrapper in self._wrappers():
                    wrapper.enable_adapters(self.disabled)
            self._disabled = reasons

    def _to_base(self, action: str) -> None:
        if self._merged is None:
            self.parts.enable(False)
        elif self._merged.kept:
            self._merged.swap(self.model)
        else:
            raise AdapterError(codes.NOT_KEPT(action=action))

    def code_for(self, plan: Plan) -> PlanCode:
        """Return the code of an adapter that runs as a plan does, or compile the plan.

        Raises:
            AdapterError: the model is merged (BS643, BS629) or sharded (BS645).
            ModelError, SpecError: see `compile_plan`.
        """
        self._require_unmerged("load another adapter")
        for adapter in self.adapters.values():
            if adapter.plan.runs_as(plan):
                return adapter.compiled
        return compile_plan(self.model, plan)

    def add(
        self,
        name: str,
        plan: Plan,
        compiled: PlanCode,
        tensors: Mapping[str, torch.Tensor],
        spec_text: str,
        seed: int,
    ) -> tuple[str, ...]:
        """Add an adapter to the model, replacing any adapter of this name.

        Args:
            name: of the adapter.
            plan: of the adapter.
            compiled: from `code_for`.
            tensors: the plan's tensors by name; they become parameters of the model.
            spec_text: the text of the spec.
            seed: of the adapter.

        Returns:
            The notes of the code, if no other adapter has it.

        Raises:
            AdapterError: the model is merged (BS643, BS629) or sharded (BS645), or the name exists while
                a mixed batch is open (BS674).
        """
        self._require_unmerged("load another adapter")
        is_new = all(adapter.compiled is not compiled for adapter in self.adapters.values())
        with self._switching("replace an adapter") if name in self.adapters else CHANGING:
            parts = place(self.model, compiled, tensors)
            new = Adapter(name, plan, spec_text, seed, compiled, parts, parts.sources())
            active = [new if other == name else self[other] for other in self.active]
            running = self._combine(active) if new in active else self._running
            if name in self.adapters:
                self[name].parts.leave(name)
            parts.join(name)
            self.adapters[name] = new
            if running is not self._running:
                self._run(self.active, running)
        return compiled.notes if is_new else ()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Run other adapters, several together or none, and train them unless ``inference_mode`` is set.

        Wait for forwards in other threads to end first: outside a mixed batch they could use a mixture of
        adapters. Compact adapters never train, and in a `bank` the bank trains.

        Raises:
            AdapterError: no such name (BS640), the model is merged (BS643, BS629) or sharded (BS645), a mixed
                batch is open (BS674), or an adapter trains in full what another one changes (BS665).
        """
        names = [adapter_names] if isinstance(adapter_names, str) else [*adapter_names]
        with self._switching("switch adapters"):
            self._switch(names, inference_mode)
            for name, adapter in self.adapters.items():
                if adapter.bank is None:
                    adapter.set_trainable(name in names and not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter from the model. If it runs alone, the first remaining adapter replaces it.

        Raises:
            AdapterError: no such name (BS640), the model is merged (BS643, BS629) or sharded (BS645), or a
                mixed batch is open (BS674).
        """
        with self._switching("delete an adapter"):
            if not self._own_names([adapter_name]):
                return
            if adapter_name in self.active:
                rest = [name for name in self.active if name != adapter_name]
                others = [name for name in self.adapters if name != adapter_name]
                if not rest and others:
                    text = f"Adapter {adapter_name} was active which is now deleted."
                    warnings.warn(f"{text} Setting active adapter to {others[0]}.", stacklevel=2)
                trains = any(self[name].trains for name in self.active)
                self.set_adapter(rest or others[:1], inference_mode=not trains)
            self.adapters.pop(adapter_name).parts.leave(adapter_name)
            vars(self.model).get("peft_config", {}).pop(adapter_name, None)
            for _, wrapper in self._wrappers():
                own = wrapper._get_available_adapters()
                if adapter_name in own:
                    wrapper.delete_adapter(adapter_name, [n for n in self.active if n in own])

    def set_scale(self, adapter: str, scale: float) -> None:
        """Scale an adapter's update relative to its trained plan, where the scale is 1.

        This recompiles the forwards, and applies to merging, mixed batches and exports. Saving warns that it
        leaves scales out (BS684).

        Raises:
            AdapterError: no such adapter (BS640), the adapter trains parameters in full (BS667), the
                model is merged (BS643, BS629) or sharded (BS645), or a mixed batch is open (BS674).
        """
        member = self[adapter]
        scale = float(scale)  # Generated code cannot name numpy's numbers.
        if not math.isfinite(scale):
            raise AdapterError(codes.WRONG_SCALE(scale=scale))
        if scale == member.scale:
            return
        whole = member.saved_plan.trained
        if whole:
            raise AdapterError(codes.NOT_SCALED(name=adapter, path=whole[0].parameter))
        help = "leave its scale at 1, or train it with another"
        check_unscaled([member], "scale the adapter `{}`", help)
        with self._switching("scale an adapter"):
            self._require_unmerged("scale an adapter")
            self._change([replace(member, scale=scale)])

    @contextmanager
    def disable_share(self, *shares: str, adapter: str | None = None) -> Iterator[None]:
        """Run adapters without some of their shares inside the block; blocks may be nested.

        The shares are disabled in all threads, also in mixed batches and exports. The whole adapter is saved,
        and its tensors stay in the model. The forwards are recompiled at both ends of the block.

        Args:
            *shares: names in the spec, ``magnitude``, or ``train`` for the parameters trained in full.
            adapter: its name; by default all active ones.

        Raises:
            AdapterError: no such adapter (BS640) or share (BS600), the model is merged (BS643, BS629) or
                sharded (BS645), or a mixed batch is open (BS674). Inside the block, merging, unloading and
                copying raise it (BS626).
        """
        members = self.members(adapter)
        check_shares(members, shares)
        block = DisabledShares(frozenset(shares))
        with ended_by(lambda: self._enable_shares(members, block)):
            with self._switching("disable a share"):
                self._require_unmerged("disable a share")
                self._change([replace(m, disabled=(*m.disabled, block)) for m in members])
            yield

    def _enable_shares(self, members: Sequence[Adapter], block: DisabledShares) -> None:
        """End a block of `disable_share` in those of its adapters that are still in the model."""
        with self._switching("enable a share"):
            changed = []
            for member in members:
                if block in member.disabled and self.adapters.get(member.name) is member:
                    open_blocks = tuple(other for other in member.disabled if other is not block)
                    changed.append(replace(member, disabled=open_blocks))
            self._change(changed)

    def _change(self, adapters: Sequence[Adapter]) -> None:
        """Give adapters other settings, and the plan, code and parts that follow from them.

        Args:
            adapters: copies of adapters of the model, with the new settings.
        """
        changed = {adapter.name: adapter for adapter in adapters}
        for adapter in adapters:
            whole = adapter.saved_plan
            adapter.plan = adapter.running_plan
            adapter.trained = None if adapter.plan is whole else whole
            adapter.compiled = compile_plan(self.model, adapter.plan)
            parts = connect(self.model, adapter.compiled, adapter.sources)
            adapter.parts = replace(parts, owned=adapter.parts.owned)
        active = [changed.get(name, self[name]) for name in self.active]
        runs = any(adapter in active for adapter in adapters)
        together = self._combine(active) if runs and len(active) > 1 else None
        with uninterrupted():
            for adapter in adapters:
                # Others hold the record, so it stays the same object.
                vars(self[adapter.name]).update(vars(adapter))
            if runs:
                self._run(self.active, together or self[self.active[0]])

    def members(self, adapter: str | None = None) -> list[Adapter]:
        """Return the adapter of a name, or all active ones.

        Raises:
            AdapterError: no such name (BS640), or none is active (BS627).
        """
        if adapter is not None:
            return [self[adapter]]
        if not self.active:
            raise AdapterError(codes.UNLOADED())
        return [self[name] for name in self.active]

    def __getitem__(self, name: str) -> Adapter:
        """Return an adapter of the model.

        Raises:
            AdapterError: no such name (BS640).
        """
        if name not in self.adapters:
            raise AdapterError(codes.UNKNOWN_ADAPTER(name=name, help=nearest(name, self.adapters)))
        return self.adapters[name]

    def at_head(self, plan: Plan) -> str | None:
        """Return the path of the model's head, if a plan has a term there."""
        head = getattr(self.model, "get_output_embeddings", lambda: None)()
        paths = {p for s in plan.sites if plan.terms_of[s.path] for p in s.paths}
        modules: dict[str, nn.Module] = dict(self.model.named_modules())
        for path, module in modules.items():
            if module is head and path in paths:
                return path
        return None

    def trained_by_peft(self, adapter: Adapter) -> str | None:
        """Return the path of a module that PEFT trains in full together with an adapter."""
        settings = ("modules_to_save", "trainable_token_indices")
        if not any(getattr(adapter.config, setting, None) for setting in settings):
            return None
        for path, wrapper in self._wrappers():
            if adapter.name in wrapper._get_available_adapters():
                return path
        return None

    def _switch(self, names: Sequence[str], inference_mode: bool | None = None) -> None:
        """Run other adapters, and the modules that PEFT trains with them.

        Args:
            names: of the adapters.
            inference_mode: whether these modules are frozen; None if the adapters are.
        """
        names = tuple(dict.fromkeys(names))
        chosen = [self[name] for name in names]
        # The copy of each module that PEFT trains to run from now on, if any.
        copies: list[tuple[AuxiliaryTrainingWrapper, str | None]] = []
        for path, wrapper in self._wrappers():
            available = wrapper._get_available_adapters()
            own = [name for name in names if name in available]
            if len(own) > 1:
                raise AdapterError(codes.TRAINED_TWICE(path=path))
            copies.append((wrapper, own[0] if own else None))
        running = self._running
        if names != self.active or running is None:
            self._require_unmerged("switch adapters")
            running = self._combine(chosen)
        if inference_mode is None:
            inference_mode = not any(adapter.trains for adapter in chosen)
        if running is not self._running or names != self.active:
            self._run(names, running)
        for wrapper, copy in copies:
            wrapper.set_adapter([] if copy is None else copy, inference_mode=inference_mode)

    def _run(self, names: tuple[str, ...], running: Adapter | None) -> None:
        self.parts.remove()
        self.active = names
        self._running = running
        self.parts = running.parts if running else AdapterParts()
        self.parts.insert()
        if self.disabled:
            self.parts.enable(False)

    def _combine(self, adapters: Sequence[Adapter]) -> Adapter | None:
        """Combine several adapters into one that uses their tensors."""
        if len(adapters) < 2:
            return adapters[0] if adapters else None
        help = "activate it alone, with `set_adapter`"
        check_unscaled(adapters, "run the adapter `{}` together with others", help)
        plan = plan_together([adapter.plan for adapter in adapters])
        paths: list[str] = []
        for adapter in adapters:
            for trained in adapter.saved_plan.trained:
                paths += trained.paths
        paths += [f"{path}.weight" for site in plan.sites for path in (site.path, *site.tied)]
        for path in paths:
            if paths.count(path) > 1:
                raise AdapterError(codes.TRAINED_TWICE(path=path))
        sources: dict[str, tuple[OwnedTensors, int]] = {}
        for i, adapter in enumerate(adapters):
            sources |= {name_of(i, name): source for name, source in adapter.sources.items()}
        compiled = compile_plan(self.model, plan)
        parts = connect(self.model, compiled, sources)
        name = "+".join(adapter.name for adapter in adapters)
        first = adapters[0]
        return Adapter(name, plan, first.spec_text, first.seed, compiled, parts, sources)

    def _own_names(self, names: Sequence[str]) -> list[str]:
        """Return the names that are bishare adapters: others may belong to another PEFT method.

        Raises:
            AdapterError: the model has no such adapter (BS640).
        """
        in_layers: set[str] = set()
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                in_layers.update(module._get_available_adapters())
        for name in names:
            if name not in in_layers:
                self[name]  # Raises the error.
        return [name for name in names if name in self.adapters]

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        adapter = self[adapter_name]
        move_tensors(adapter.parts.tensors(), devices(adapter.plan, self.model))

    def extra_repr(self) -> str:
        if not self._model or self._running is None:
            return "unloaded"
        modules = sum(1 for terms in self.plan.terms_of.values() if terms)
        state = "active"
        if self.merged:
            state = "merged"
        if self.disabled:
            state = "disabled"
        return f"{self.plan.spec}: {self.plan.trainable:,} trainable parameters at {modules} modules, {state}"

    def _wrappers(self) -> Iterator[tuple[str, AuxiliaryTrainingWrapper]]:
        """Yield the modules of the base that PEFT trains, in copies, next to adapters."""
        for path, module in self.model.named_modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                yield path, module

    @contextmanager
    def _switching(self, action: str, *, enabled: bool = False) -> Iterator[PreTrainedModel]:
        """Permit one thread at a time to replace the running adapter inside the block; yield the model.

        Raises:
            AdapterError: the adapter was unloaded (BS627), a mixed batch is open (BS674), or the adapter or a
                share is disabled (BS626) and ``enabled`` is set.
        """
        with CHANGING, self._mixed.closed(action) if self._mixed else nullcontext():
            model = self.model
            if enabled:
                self._require_enabled(action)
                self._require_all_shares(action)
            yield model

    def _require_enabled(self, action: str) -> None:
        """Raise AdapterError if the adapter is disabled (BS626), or merged in part for good (BS629)."""
        if self._halfway:
            raise AdapterError(codes.NOT_KEPT(action=action))
        if self.disabled:
            raise AdapterError(codes.DISABLED(action=action, what="the adapter is"))

    def _require_all_shares(self, action: str) -> None:
        """Raise AdapterError if a block has disabled shares of an adapter (BS626)."""
        for adapter in self.adapters.values():
            if adapter.disabled:
                what = f"shares of adapter `{adapter.name}` are"
                raise AdapterError(codes.DISABLED(action=action, what=what))

    def _require_unmerged(self, action: str) -> None:
        """Check that the adapter is not merged, and the model not sharded.

        Raises:
            AdapterError: it is merged (BS643, BS629), or the model is sharded (BS645).
        """
        if self._merged is not None:
            code = codes.STILL_MERGED if self._merged.kept else codes.NOT_KEPT
            raise AdapterError(code(action=action))
        # Look at an adapter: ZeRO-3 may partition the base, but not adapters, while it is loaded.
        stores = (store for adapter in self.adapters.values() for _, store in adapter.parts.owned)
        first = next((tensor for store in stores for tensor in store.parameters()), None)
        sharded = any(is_sharded(region) for region, _ in self.parts.regions)
        if sharded or is_partitioned(first):
            raise AdapterError(codes.SHARDED(action=action))


def check_shares(members: Sequence[Adapter], names: Iterable[str]) -> None:
    """Check that each name is of a share in one of some adapters.

    Raises:
        AdapterError: an adapter has no such share (BS600).
    """
    known: set[str] = set()
    for member in members:
        known.update(share_names(member.saved_plan))
    adapters = "+".join(member.name for member in members)
    for name in names:
        if name not in known:
            help = nearest(name, known)
            raise AdapterError(
                codes.UNKNOWN_PART(adapter=adapters, what="share", name=name, help=help)
            )


def _check_names(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Check that a call names no adapter for each row, because transformers ignores unknown arguments.

    Raises:
        AdapterError: it does (BS683).
    """
    if kwargs.get("adapter_names") is not None and not _takes_names(module):
        raise AdapterError(codes.NAMES_IGNORED(model=type(module).__name__))


def _check_head(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Check that no call computes the loss from a head's weight without the running adapter's term there.

    Raises:
        AdapterError: it does (BS668).
    """
    if kwargs.get(FUSED_HEAD):
        handle = cast(TunerLayer, model.get_submodule(ADAPTER))
        running = handle._running
        if running is None or handle.disabled or handle.merged:
            return
        path = handle.at_head(running.plan)
        if path is not None:
            raise AdapterError(codes.FUSED_HEAD(path=path, name=running.name))


def _takes_names(model: nn.Module) -> bool:
    return "adapter_names" in inspect.signature(base_class(type(model)).forward).parameters
