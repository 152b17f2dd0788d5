"""``model.bishare``: the user's interface to an adapted model, and the tuner layer that PEFT calls.

It is a single PEFT tuner layer for all adapters of a model. PEFT, transformers and TRL switch, merge,
disable and delete adapters through its methods, which have PEFT's names.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from math import prod
from types import FunctionType
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from torch.utils.hooks import RemovableHandle

from bishare_dsl.adapted import merge as merging
from bishare_dsl.adapted.interrupts import CHANGING, ended_by
from bishare_dsl.adapted.merge import Merged, MergeReport
from bishare_dsl.adapted.own_methods import BATCHING, RESIZING, TYING, drop_methods, put_methods
from bishare_dsl.batched.bank import Bank
from bishare_dsl.batched.batches import MixedBatches
from bishare_dsl.convert.export import export_adapter
from bishare_dsl.convert.peft import task_type
from bishare_dsl.convert.report import ExportReport
from bishare_dsl.diagnostics import AdapterError, BishareWarning, Problem, nearest, render
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.folder.devices import devices, gather_tensors, move_tensors, on_first_process
from bishare_dsl.folder.files import save_adapter
from bishare_dsl.folder.fingerprint import Fingerprint, base_changes, fingerprint
from bishare_dsl.folder.stored import Frozen, Rounded
from bishare_dsl.initial.singular import singular_starts
from bishare_dsl.initial.values import draw_tensor
from bishare_dsl.models.hooks import (
    FUSED_HEAD,
    full_shape,
    is_partitioned,
    is_sharded,
    reshard,
    resident_tensor,
)
from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.models.site import ADAPTER
from bishare_dsl.plan import Plan
from bishare_dsl.plan.names import attribute
from bishare_dsl.plan.together import name_of, plan_together, scaled_plan
from bishare_dsl.rewrite.adapt import attach, compile_plan, place, unadapt
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.parts import AdapterParts, AdapterRoot, PlanCode
from bishare_dsl.rewrite.rewritten import base_class

if TYPE_CHECKING:
    from collections.abc import Collection

    from transformers import PreTrainedModel

    from bishare_dsl.folder.config import AdapterConfig

_BY_CALL = frozenset({"enable_adapters"})


@dataclass(eq=False)
class Adapter:
    """An adapter of a model: its plan and settings, and the modules that contain its tensors."""

    name: str
    plan: Plan
    spec_text: str
    seed: int
    compiled: PlanCode
    parts: AdapterParts
    sources: Mapping[str, tuple[OwnedTensors, int]]
    """The module of each tensor and its index there, by the tensor's name in the plan."""
    bank: tuple[Bank, int] | None = None
    config: Any = None
    """PEFT's config, also in ``model.peft_config``; None for several adapters running together."""
    scale: float = 1.0
    """The multiplier of all terms, relative to the trained plan."""
    trained: Plan | None = None
    """The plan it was trained with, if it differs from the running plan."""
    drawn: Collection[str] | None = None
    """The frozen tensors that the seed reproduces, of an adapter that was read; None for all."""

    @property
    def saved_plan(self) -> Plan:
        """The plan to save: scales are not saved."""
        return self.trained or self.plan

    def scale_problems(self) -> list[Problem]:
        """Warn if saving leaves out a scale (BS684)."""
        return [] if self.scale == 1 else [codes.SCALE_NOT_SAVED(name=self.name, scale=self.scale)]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the parameters themselves by their names in the plan, each once.

        With accelerate's offload, return the tensors that hold the values.
        """
        values = {}
        for name in self.plan.tensor:
            store, number = self.sources[name]
            value = resident_tensor(store, store.attributes[number])
            assert value is not None, name
            values[name] = value
        return values

    @property
    def dropout_active(self) -> bool:
        """Whether dropout is active in its terms."""
        return any(store.dropout_active for _, store in self.parts.owned)

    def set_trainable(self, trainable: bool) -> None:
        """Enable or disable training of the tensors that the spec trains."""
        for name, (store, number) in self.sources.items():
            parameter = store.get_parameter(store.attributes[number])
            parameter.requires_grad_(trainable and self.plan.tensor[name].trainable)


class Handle(AdapterRoot, BaseTunerLayer):
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
        self.adapters, self.active, self._running = {name: first}, (name,), first
        put_methods(model, RESIZING, TYING, BATCHING)
        inner = getattr(model, "base_model", None)  # As in `model.model(...)`.
        called: list[nn.Module] = [model]
        if isinstance(inner, nn.Module) and inner is not model and not _takes_names(model):
            called.append(inner)
        checks = [*((module, _check_names) for module in called), (model, _check_head)]
        self._hooks = tuple(m.register_forward_pre_hook(c, with_kwargs=True) for m, c in checks)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to set what a method sets, such as ``scale``: nothing would read it."""
        if hasattr(type(self), f"set_{name}"):
            raise AttributeError(f"call `set_{name}`: nothing reads an attribute `{name}`")
        super().__setattr__(name, value)

    def at_head(self, plan: Plan) -> str | None:
        """Return the path of the model's head, if a plan has a term there."""
        head = getattr(self.model, "get_output_embeddings", lambda: None)()
        paths = {p for s in plan.sites if plan.terms_of[s.path] for p in s.paths}
        modules = self.model.named_modules()
        return next((p for p, module in modules if module is head and p in paths), None)

    def __dir__(self) -> list[str]:
        """List what users call and read first, without torch's and PEFT's."""
        kinds = (property, FunctionType)
        return [n for n, m in vars(Handle).items() if isinstance(m, kinds) and m.__doc__]

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

    def origin(self) -> dict[str, Any]:
        """Return the fields of `ORIGIN` for the adapters in the model. PEFT adds heads for other tasks."""
        model: Any = self.model
        kind, task = base_class(type(model)), task_type(model)
        return {
            "base_model": vars(model).get("name_or_path") or None,
            "base_revision": getattr(getattr(model, "config", None), "_commit_hash", None),
            "auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__},
            "task_type": task if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else None,
            "fingerprint": self.fingerprint(),
        }

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
            AdapterError: it is disabled (BS626).
        """
        self._require_enabled("copy the model")
        return super().__getstate__()  # type: ignore[no-any-return, no-untyped-call]

    @property
    def model(self) -> PreTrainedModel:
        """The adapted model.

        Raises:
            AdapterError: the adapter was unloaded (BS627).
        """
        if not self._model:
            raise AdapterError(codes.UNLOADED())
        return self._model[0]

    @property
    def merged_adapters(self) -> list[str]:  # type: ignore[override]
        """The names of the adapters currently merged into the base's weights."""
        return [] if self._merged is None else [*self.active]

    @property
    def active_adapter(self) -> list[str]:
        """The names of the running adapters."""
        return [*self.active]

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
            tensors, plan = adapter.parts.tensors(), adapter.plan.tensor
            trainable[name] = nn.ParameterList(p for n, p in tensors.items() if plan[n].trainable)
        return trainable

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the adapter's parameters themselves by their names in the plan, each once.

        With accelerate's offload, return the tensors that hold the values. With FSDP2, return the sharded
        tensors. These are first restored to the model, so do not call this during a forward.
        """
        reshard(self.model)
        return self.running.tensors()

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield the adapter's parameters, each once, wherever they are in the model, for an optimizer.

        The handle itself owns none: without ``recurse`` it yields nothing.
        """
        if recurse:
            for name in self.active:
                yield from self.adapters[name].parts.tensors().values()

    def print_trainable_parameters(self) -> None:
        """Print the number of trainable parameters in the model, in PEFT's format."""
        model = self.model
        trainable = sum(prod(full_shape(p)) for p in model.parameters() if p.requires_grad)
        # `inspect_model` counts the parameters that a quantised weight represents.
        everything = inspect_model(model).parameters
        everything += sum(prod(full_shape(tensor)) for tensor in self.tensors().values())
        text = f"trainable params: {trainable:,} || all params: {everything:,} || "
        print(f"{text}trainable%: {100 * trainable / everything:.4f}")  # noqa: T201 - its purpose

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        frozen: Frozen = "seed",
        dtype: Rounded = None,
        state_dict: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Save the adapter, without its base, as a folder that `load_adapter` and PEFT load.

        Saving replaces an adapter in the folder and leaves other files alone. If the process is killed,
        the folder has the old adapter or the new one.

        With FSDP2 every process must call this, and the first writes. Otherwise every caller writes: with
        copies of the adapter in several processes (DDP), call it in one of them.

        Args:
            folder: created if missing.
            frozen: store frozen tensors as the ``"seed"`` that reproduces them, or as ``"tensors"``.
                Those that the seed does not reproduce are stored anyway, with a warning. ``"base"`` also
                omits tensors that loading recomputes from the base's weights.
            dtype: ``"bfloat16"`` or ``torch.bfloat16`` rounds the tensors to it, which halves the file.
                Loading converts them back to float32.
            state_dict: of the whole model, if the caller has gathered it; used as the source of values.

        Raises:
            AdapterError: several run together (BS659); PEFT trains a module together with the adapter
                (BS686); or see `bishare_dsl.folder.files.save_adapter`.
        """
        self._check_alone("save the adapter")
        if self.active[1:]:
            names = " and ".join(f"`{name}`" for name in self.active)
            help = "activate one with `set_adapter`, or call `save_pretrained` of the `PeftModel`"
            raise AdapterError(codes.SAVED_TOGETHER(names=names, help=help))
        adapter, model = self.running, self.model
        how: Any = {"seed": adapter.seed, "origin": self.origin(), "frozen": frozen, "dtype": dtype}
        if frozen == "base":
            how["reproduced"] = singular_starts(adapter.saved_plan, model, torch.float64)

        def write(tensors: Mapping[str, torch.Tensor]) -> Any:
            plan, text = adapter.saved_plan, adapter.spec_text
            return save_adapter(folder, plan, tensors, text, **how)

        if state_dict is None:
            problems = on_first_process(adapter.plan, self.tensors(), write)
        else:
            problems = write(values_in(state_dict, model, adapter))
        for problem in (*problems, *adapter.scale_problems()):
            warnings.warn(render(problem), BishareWarning, stacklevel=2)

    def export(
        self,
        out: str | os.PathLike[str],
        format: str = "peft",
        *,
        rank: int | None = None,
        dtype: str | torch.dtype = torch.float32,
    ) -> ExportReport:
        """Write the adapter as a plain LoRA: a folder, or for llama.cpp a file.

        With FSDP2 every process must call this, and the first writes.

        Args:
            out: the folder or file; must not exist, or be an empty folder.
            format: ``"peft"``, ``"vllm"``, ``"sglang"`` or ``"gguf"``. The first three differ in experts
                that are stored in one parameter.
            rank: truncate to this rank; the report contains the loss.
            dtype: of the values: float32, bfloat16 or float16.

        Raises:
            AdapterError: PEFT trains a module together with the adapter (BS686); the adapter has a magnitude
                and is merged (BS643, BS629); or see `bishare_dsl.convert.export.export_adapter`.
        """
        self._check_alone("export the adapter")
        if self.merged and not self.disabled and self.plan.has_magnitudes:
            # They depend on the base's weights.
            self._require_unmerged("export the adapter's magnitudes")
        how: Any = {"rank": rank, "dtype": dtype}

        def write(tensors: Mapping[str, torch.Tensor]) -> ExportReport:
            return export_adapter(out, self.plan, tensors, self.model, format, **how)

        report = on_first_process(self.plan, self.tensors(), write)
        for problem in report.warnings:
            warnings.warn(render(problem), BishareWarning, stacklevel=2)
        return report

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Run the model as its base inside the block, merged or not; blocks may be nested.

        The adapter is disabled in all threads, from the start of the first block to the end of the last.

        Raises:
            AdapterError: the adapter was merged without keeping the base (BS629), or a mixed batch is open
                (BS674).
        """
        token = frozenset({object()})
        with ended_by(lambda: self._turn("enable the adapter", ended=token)):
            self._turn("disable the adapter", begun=token)
            yield

    def enable_adapters(self, enabled: bool) -> None:
        """Disable or enable the adapter; repeated calls do not nest.

        Inside a block of `disable_adapter` the adapter stays disabled until the block ends.

        Raises:
            AdapterError: as `disable_adapter`.
        """
        action = "enable the adapter" if enabled else "disable the adapter"
        self._turn(action, **{"ended" if enabled else "begun": _BY_CALL})

    def _turn(
        self, action: str, begun: Set[object] = frozenset(), ended: Set[object] = frozenset()
    ) -> None:
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

    def restorer(self) -> Callable[[], Callable[[], None] | None]:
        """Return a function that gives the base's weights their present values again.

        It returns a function to call last, if a merge has lost them: the model then refuses to run.
        """
        before, inside = self._merged, bool(self._merged and self._merged.inside)

        def undo() -> Callable[[], None] | None:
            now = self._merged
            if now is not None and now is not before and now.inside:
                if not now.kept:
                    return self._give_up
                now.swap(self.model)
            if before is not None and before.inside != inside:
                before.swap(self.model)
            return None

        return undo

    def _give_up(self) -> None:
        """Refuse to run: weights are merged for good, and running the adapter would add to them twice."""
        self.parts.enable(False)
        self._merged, self._halfway = Merged(False, MergeReport(0), inside=True), True
        self._hooks += (self.model.register_forward_pre_hook(_refuse_half_merged),)

    def merge(  # type: ignore[override]
        self,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        *,
        keep_base: bool = True,
        dequantize: bool = False,
    ) -> MergeReport:
        """Merge adapters into the base's weights, in float32, and report how the sums were rounded.

        Warn if rounding loses more than a tenth of the update (BS639).

        Args:
            safe_merge: for calls of PEFT; values that are not finite are rejected in any case.
            adapter_names: the adapters to merge instead of the running ones, which run again after
                `unmerge`. Adapters that are already merged stay merged.
            keep_base: keep copies of the weights on the CPU, required for `unmerge` and `disable_adapter`,
                and to undo a merge that is interrupted. Without them the model refuses to run after one.
            dequantize: replace quantised layers by dense ones.

        Raises:
            AdapterError: disabled (BS626), no such adapter (BS640), an update is not a matrix (BS633), or
                see `bishare_dsl.adapted.merge`, such as BS628; the model is not changed.
        """
        if not isinstance(safe_merge, bool):
            raise TypeError("it writes no file: `merge_and_unload().save_pretrained(folder)` does")
        with self._switching("merge", enabled=True):
            merged, active = self.merged_adapters, self.active
            more = self._mine(check_adapters_to_merge(self, adapter_names))
            if not more:
                return self._merged.report if self._merged else MergeReport(0)
            if merged:
                self._restore("merge")
            self._switch([*merged, *more])
            report = self._merge(keep_base=keep_base, dequantize=dequantize)
            if not merged:
                self._before_merge = active
            for problem in report.survival.problems():
                warnings.warn(render(problem), BishareWarning, stacklevel=3)
            return report

    def _merge(self, *, keep_base: bool, dequantize: bool) -> MergeReport:
        model, tensors = self.model, gather_tensors(self.plan, self.tensors())
        merging.check(model, self.plan, tensors, dequantize=dequantize)
        self.parts.enable(False)
        self._merged = Merged(keep_base, MergeReport(0))
        merging.merge(model, self.plan, tensors, self._merged)
        return self._merged.report

    def unmerge(self) -> None:
        """Restore the base's weights, bit for bit, and run the adapters that ran before `merge`.

        Raises:
            AdapterError: disabled (BS626), or the base was not kept (BS629).
        """
        with self._switching("unmerge", enabled=True):
            if self._merged is None:
                warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
                return
            self._restore("unmerge")
            before = [name for name in self._before_merge if name in self.adapters]
            self._switch(before or self.active)  # They may have been deleted meanwhile.

    def _restore(self, action: str) -> None:
        """Restore the base's weights, and run the merged adapters unmerged."""
        self._to_base(action)
        self._merged = None
        self.parts.enable(True)

    def merge_and_unload(
        self,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        *,
        dequantize: bool = False,
    ) -> PreTrainedModel:
        """Merge permanently, and return the model without bishare.

        The model's other adapters are dropped. If layers are dequantised, all others are too, so that the
        model saves and loads as a dense one.

        Raises:
            AdapterError: see `merge`.
        """
        with self._switching("merge", enabled=True) as model:
            if self._merged is None or adapter_names is not None:
                keep = self._merged is not None  # To undo it if another merge fails.
                self.merge(safe_merge, adapter_names, keep_base=keep, dequantize=dequantize)
            if dequantize or (self._merged and self._merged.report.dequantized):
                merging.make_dense(model)
            return self._detach(model, merge=True)

    def unload(self) -> PreTrainedModel:
        """Remove the adapters, and return the unchanged base.

        Raises:
            AdapterError: disabled (BS626), or merged without keeping the base (BS629).
        """
        with self._switching("unload", enabled=True) as model:
            if self._merged is not None:
                self._restore("unload")
            return self._detach(model)

    # Several adapters -----------------------------------------------------

    def add(
        self, name: str, plan: Plan, tensors: Mapping[str, torch.Tensor], spec_text: str, seed: int
    ) -> tuple[str, ...]:
        """Add an adapter to the model, replacing any adapter of this name.

        Returns:
            Notes from `adapt`, for the first adapter of a plan.

        Raises:
            AdapterError: the model is merged (BS643, BS629) or sharded (BS645), or the name exists while
                a mixed batch is open (BS674).
            ModelError, SpecError: see `compile_plan`.
        """
        self._require_unmerged("load another adapter")
        with self._switching("replace an adapter") if name in self.adapters else CHANGING:
            alike = [a.compiled for a in self.adapters.values() if a.plan.runs_as(plan)]
            compiled = alike[0] if alike else compile_plan(self.model, plan)
            parts = place(self.model, compiled, tensors)
            new = Adapter(name, plan, spec_text, seed, compiled, parts, parts.sources())
            active = [new if other == name else self[other] for other in self.active]
            running = self._together(active) if new in active else self._running
            if name in self.adapters:
                self[name].parts.leave(name)
            parts.join(name)
            self.adapters[name] = new
            if running is not self._running:
                self._run(self.active, running)
        return () if alike else compiled.notes

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

    def set_scale(self, adapter: str, scale: float) -> None:
        """Scale an adapter's update relative to its trained plan, where the scale is 1.

        This recompiles the forwards, and applies to merging, mixed batches and exports. Saving warns that it
        leaves scales out (BS684).

        Raises:
            AdapterError: no such adapter (BS640), the adapter trains parameters in full (BS667), the
                model is merged (BS643, BS629) or sharded (BS645), or a mixed batch is open (BS674).
        """
        member, scale = self[adapter], float(scale)  # Generated code cannot name numpy's numbers.
        if not math.isfinite(scale):
            raise AdapterError(codes.WRONG_SCALE(scale=scale))
        if scale == member.scale:
            return
        if member.plan.trained:
            path = member.plan.trained[0].parameter
            raise AdapterError(codes.NOT_SCALED(name=adapter, path=path))
        help = "leave its scale at 1, or train it with another"
        check_unscaled([member], "scale the adapter `{}`", help)
        with self._switching("scale an adapter"):
            self._require_unmerged("scale an adapter")
            trained = member.saved_plan
            plan = trained if scale == 1 else scaled_plan(trained, scale)
            compiled = compile_plan(self.model, plan)
            parts = attach(self.model, compiled, member.sources)
            owned = replace(parts, owned=member.parts.owned)
            changed = replace(member, plan=plan, compiled=compiled, parts=owned, scale=scale)
            changed.trained = None if scale == 1 else trained
            active = [changed if name == adapter else self[name] for name in self.active]
            running = self._together(active) if changed in active else self._running
            vars(member).update(vars(changed))
            if changed in active:
                self._run(self.active, member if running is changed else running)

    def _switch(self, names: Sequence[str], inference_mode: bool | None = None) -> None:
        """Run other adapters, and the modules that PEFT trains with them.

        Args:
            names: of the adapters.
            inference_mode: whether these modules are frozen; None if the adapters are.
        """
        names = tuple(dict.fromkeys(names))
        chosen = [self[name] for name in names]
        beside = [
            (path, wrapper, [name for name in names if name in wrapper._get_available_adapters()])
            for path, wrapper in self._wrappers()
        ]
        if twice := next((path for path, _, own in beside if own[1:]), None):
            raise AdapterError(codes.TRAINED_TWICE(path=twice))
        running = self._running
        if names != self.active or running is None:
            self._require_unmerged("switch adapters")
            running = self._together(chosen)
        if inference_mode is None:
            inference_mode = not any(
                p.requires_grad for a in chosen for p in a.parts.tensors().values()
            )
        if running is not self._running or names != self.active:
            self._run(names, running)
        for _, wrapper, own in beside:
            wrapper.set_adapter(own[0] if own else [], inference_mode=inference_mode)

    def _run(self, names: tuple[str, ...], running: Adapter | None) -> None:
        self.parts.remove()
        self.active, self._running = names, running
        self.parts = running.parts if running else AdapterParts()
        self.parts.insert()
        if self.disabled:
            self.parts.enable(False)

    def _mine(self, names: Sequence[str]) -> list[str]:
        """Return the names that are bishare adapters: others may belong to another PEFT method.

        Raises:
            AdapterError: the model has no such adapter (BS640).
        """
        layers = (module for module in self.model.modules() if isinstance(module, BaseTunerLayer))
        others = {name for layer in layers for name in layer._get_available_adapters()}
        for name in names:
            if name not in others:
                self[name]
        return [name for name in names if name in self.adapters]

    def __getitem__(self, name: str) -> Adapter:
        """Return an adapter of the model.

        Raises:
            AdapterError: no such name (BS640).
        """
        if name not in self.adapters:
            raise AdapterError(codes.UNKNOWN_ADAPTER(name=name, help=nearest(name, self.adapters)))
        return self.adapters[name]

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter from the model. If it runs alone, the first remaining adapter replaces it.

        Raises:
            AdapterError: no such name (BS640), the model is merged (BS643, BS629) or sharded (BS645), or a
                mixed batch is open (BS674).
        """
        with self._switching("delete an adapter"):
            if not self._mine([adapter_name]):
                return
            if adapter_name in self.active:
                rest = [name for name in self.active if name != adapter_name]
                others = [name for name in self.adapters if name != adapter_name]
                if not rest and others:
                    text = f"Adapter {adapter_name} was active which is now deleted."
                    warnings.warn(f"{text} Setting active adapter to {others[0]}.", stacklevel=2)
                trains = any(p.requires_grad for p in self.parameters())
                self.set_adapter(rest or others[:1], inference_mode=not trains)
            self.adapters.pop(adapter_name).parts.leave(adapter_name)
            vars(self.model).get("peft_config", {}).pop(adapter_name, None)
            for _, wrapper in self._wrappers():
                own = wrapper._get_available_adapters()
                if adapter_name in own:
                    wrapper.delete_adapter(adapter_name, [n for n in self.active if n in own])

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        adapter = self[adapter_name]
        move_tensors(adapter.parts.tensors(), devices(adapter.plan, self.model))

    @contextmanager
    def rows(self, adapter_names: Iterable[str | None]) -> Iterator[None]:
        """Run each row of the model's input with a separate adapter inside the block, in this thread.

        In training mode each row's adapter receives its gradients, if it trains: inactive adapters are
        frozen until ``handle[name].set_trainable(True)``. Dropout masks differ between rows.

        Args:
            adapter_names: the adapter of each row; None (``"__base__"`` in PEFT) for the base.

        Raises:
            AdapterError: see `MixedBatches.batch`.
        """
        with CHANGING:
            if self._mixed is None:
                self._mixed = MixedBatches(self.model, self.adapters, self._check_mixed)
        with self._mixed.open(adapter_names):
            yield

    @property
    def has_open_batch(self) -> bool:
        """Whether this thread has opened a mixed batch of this model."""
        return self._mixed is not None and self._mixed.last_open() is not None

    def trained_by_peft(self, adapter: Adapter) -> str | None:
        """Return the path of a module that PEFT trains in full together with an adapter."""
        settings = ("modules_to_save", "trainable_token_indices")
        if not any(getattr(adapter.config, setting, None) for setting in settings):
            return None
        named = ((path, wrapper._get_available_adapters()) for path, wrapper in self._wrappers())
        return next((path for path, names in named if adapter.name in names), None)

    def _check_alone(self, action: str) -> None:
        """Check that PEFT trains no module together with the running adapters.

        Raises:
            AdapterError: it does (BS686).
        """
        for path in filter(None, (self.trained_by_peft(self[name]) for name in self.active)):
            help = "call `save_pretrained` or `merge_and_unload` of the `PeftModel`: it is included"
            raise AdapterError(codes.NOT_LOW_RANK(action=action, path=path, help=help))

    def _wrappers(self) -> Iterator[tuple[str, AuxiliaryTrainingWrapper]]:
        """Yield the modules of the base that PEFT trains, in copies, next to adapters."""
        for path, module in self.model.named_modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                yield path, module

    @contextmanager
    def bank(
        self,
        names: Sequence[str],
        shared: frozenset[str] = frozenset(),
        fixed: frozenset[str] = frozenset(),
    ) -> Iterator[Bank]:
        """Train adapters together inside the block, as rows of mixed batches.

        Their parameters become views of the bank, which trains instead of them; they can still be saved,
        merged and switched.

        Args:
            names: of the adapters.
            shared: the names of tensors to share between all adapters, which must have one plan. The
                first adapter's values are used.
            fixed: the names of tensors to freeze.
        """
        members = [self[name] for name in names]

        def leave() -> None:
            for member in members:
                member.bank = None
                member.set_trainable(member.name in self.active)

        with ended_by(leave):
            for member in members:
                member.set_trainable(True)
                for name in fixed:
                    member.parts.tensors()[name].requires_grad_(False)
            bank = Bank.of_members([member.parts.tensors() for member in members], shared)
            for row, member in enumerate(members):
                member.bank = bank, row
            yield bank

    def _check_mixed(self, names: Iterable[str]) -> None:
        """Check that the running adapters permit a mixed batch of others.

        Raises:
            AdapterError: they are disabled (BS626) or merged (BS643, BS629); the model is sharded (BS645); or
                one that runs or is named trains parameters in full, in its spec or by PEFT (BS687).
        """
        self._require_enabled("run a mixed batch")
        self._require_unmerged("run a mixed batch")
        for name in dict.fromkeys((*self.active, *names)):
            trained = self[name].plan.trained
            path = trained[0].parameter if trained else self.trained_by_peft(self[name])
            if path is not None:
                raise AdapterError(codes.MIXED_WHOLE(name=name, path=path))

    def _together(self, adapters: Sequence[Adapter]) -> Adapter | None:
        """Combine several adapters into one that uses their tensors."""
        if len(adapters) < 2:
            return adapters[0] if adapters else None
        help = "activate it alone, with `set_adapter`"
        check_unscaled(adapters, "run the adapter `{}` together with others", help)
        plan = plan_together([adapter.plan for adapter in adapters])
        paths = [path for trained in plan.trained for path in trained.paths]
        paths += [f"{path}.weight" for site in plan.sites for path in (site.path, *site.tied)]
        if twice := next((path for path in paths if paths.count(path) > 1), None):
            raise AdapterError(codes.TRAINED_TWICE(path=twice))
        sources: dict[str, tuple[OwnedTensors, int]] = {}
        for i, adapter in enumerate(adapters):
            sources |= {name_of(i, name): source for name, source in adapter.sources.items()}
        compiled = compile_plan(self.model, plan)
        parts = attach(self.model, compiled, sources)
        name, first = "+".join(adapter.name for adapter in adapters), adapters[0]
        return Adapter(name, plan, first.spec_text, first.seed, compiled, parts, sources)

    def extra_repr(self) -> str:
        if not self._model or self._running is None:
            return "unloaded"
        modules = sum(1 for terms in self.plan.terms_of.values() if terms)
        state = "disabled" if self.disabled else "merged" if self.merged else "active"
        return f"{self.plan.spec}: {self.plan.trainable:,} trainable parameters at {modules} modules, {state}"

    def _require_enabled(self, action: str) -> None:
        """Raise AdapterError if the adapter is disabled (BS626), or merged in part for good (BS629)."""
        if self._halfway:
            raise AdapterError(codes.NOT_KEPT(action=action))
        if self.disabled:
            raise AdapterError(codes.DISABLED(action=action))

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

    @contextmanager
    def _switching(self, action: str, *, enabled: bool = False) -> Iterator[PreTrainedModel]:
        """Permit one thread at a time to replace the running adapter inside the block; yield the model.

        Raises:
            AdapterError: the adapter was unloaded (BS627), a mixed batch is open (BS674), or the adapter is
                disabled (BS626) and ``enabled`` is set.
        """
        with CHANGING, self._mixed.closed(action) if self._mixed else nullcontext():
            model = self.model
            if enabled:
                self._require_enabled(action)
            yield model

    def _to_base(self, action: str) -> None:
        if self._merged is None:
            self.parts.enable(False)
        elif self._merged.kept:
            self._merged.swap(self.model)
        else:
            raise AdapterError(codes.NOT_KEPT(action=action))

    def _detach(self, model: PreTrainedModel, *, merge: bool = False) -> PreTrainedModel:
        for path, wrapper in [*self._wrappers()]:
            module = wrapper.unload_and_optionally_merge_module(merge, False, None)
            model.set_submodule(path, module)
        unadapt(model)
        drop_methods(model)
        if self._mixed is not None:
            self._mixed.leave()
        for hook in self._hooks:
            hook.remove()
        self._mixed, self._hooks = None, ()
        vars(model).pop("peft_config", None)
        self._model, self._merged, self._running = (), None, None
        self.parts, self.adapters, self.active = AdapterParts(), {}, ()
        return model


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
        handle = cast(Handle, model.get_submodule(ADAPTER))
        running = None if handle.disabled or handle.merged else handle._running
        if running is not None and (path := handle.at_head(running.plan)):
            raise AdapterError(codes.FUSED_HEAD(path=path, name=running.name))


def _refuse_half_merged(*_: Any) -> None:
    """Refuse a model of which an interrupted merge has changed some weights for good (BS629)."""
    raise AdapterError(codes.NOT_KEPT(action="run a model that is merged in part"))


def _takes_names(model: nn.Module) -> bool:
    return "adapter_names" in inspect.signature(base_class(type(model)).forward).parameters


def adapter_keys(model: nn.Module, adapter: Adapter) -> dict[str, str]:
    """Return the names of an adapter's tensors in the plan, by their keys in the model's `state_dict`."""
    # torch omits the wrappers for sharding and for activation checkpointing.
    wrappers = re.compile(r"\b_(checkpoint|fsdp)_wrapped_module\.")
    paths = {id(module): wrappers.sub("", path) for path, module in model.named_modules()}
    return {
        f"{paths[id(store)]}.{attribute(name)}": name
        for name, (store, _) in adapter.sources.items()
    }


def values_in(
    state_dict: Mapping[str, torch.Tensor], model: nn.Module, adapter: Adapter
) -> dict[str, torch.Tensor]:
    """Return an adapter's values by the names in the plan, from the gathered `state_dict` of its model.

    With ZeRO-3, transformers leaves out frozen tensors. Their seed reproduces those that this process does
    not hold, unless the adapter came from a folder that stores them.

    Raises:
        AdapterError: a tensor that trains is missing (BS617), as with keys of a wrapper of the model.
    """
    held, values = adapter.tensors(), {}
    for key, name in adapter_keys(model, adapter).items():
        tensor = adapter.saved_plan.tensor[name]
        if key not in state_dict and held[name].requires_grad:
            reason = f"`state_dict` has no key `{key}`"
            raise AdapterError(codes.NO_VALUES(name=name, reason=reason))
        value = state_dict.get(key)
        if value is None or value.is_meta:  # With accelerate's offload, the values are elsewhere.
            value = held[name].detach()
        partitioned = key not in state_dict and tuple(value.shape) != tensor.shape
        redrawn = partitioned and is_drawn(adapter, name)
        values[name] = draw_tensor(tensor, adapter.seed) if redrawn else value
    return values


def is_drawn(adapter: Adapter, name: str) -> bool:
    """Return whether `draw_tensor` reproduces a tensor that the adapter's folder does not store."""
    tensor, record = adapter.saved_plan.tensor[name], getattr(adapter.config, "record", None)
    drawn = adapter.drawn if record is None else record.ways("seed")
    return tensor.drawn and not tensor.trainable and (drawn is None or name in drawn)


def check_unscaled(adapters: Sequence[Adapter], action: str, help: str) -> None:
    """Check that no adapter has a magnitude, because it is not a sum of terms.

    Args:
        adapters: of a model.
        action: the unsupported action, with ``{}`` for the adapter's name.
        help: an alternative.

    Raises:
        AdapterError: an adapter has one (BS675).
    """
    names = [a.name for a in adapters if any(term.is_magnitude for term in a.plan.terms)]
    if names:
        raise AdapterError(codes.SCALES_BASE(action=action.format(names[0]), help=help))
