"""``model.bishare``: the user's interface to an adapted model: merging, saving, exporting, mixed batches."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from bishare_dsl.adapted import merge as merging
from bishare_dsl.adapted.adapter import values_in
from bishare_dsl.adapted.interrupts import CHANGING, ended_by
from bishare_dsl.adapted.merge import Merged, MergeReport
from bishare_dsl.adapted.own_methods import drop_methods
from bishare_dsl.adapted.tuner_layer import TunerLayer, check_shares
from bishare_dsl.batched.bank import Bank
from bishare_dsl.batched.batches import MixedBatches
from bishare_dsl.convert.effective import delta
from bishare_dsl.convert.export import export_adapter
from bishare_dsl.convert.peft import task_type
from bishare_dsl.convert.report import ExportReport
from bishare_dsl.diagnostics import AdapterError, BishareWarning, ModelError, nearest, render
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.diagnostics.codes.rewrite import CANNOT_ADAPT
from bishare_dsl.folder.devices import gather_tensors, on_first_process
from bishare_dsl.folder.files import save_adapter
from bishare_dsl.folder.stored import Frozen, Rounded
from bishare_dsl.initial.singular import singular_starts
from bishare_dsl.models.hooks import full_shape, reshard
from bishare_dsl.models.inspect import inspect_model, linear_maps
from bishare_dsl.models.site import ADAPTER, in_adapter
from bishare_dsl.names import module_names, name_fault
from bishare_dsl.plan import Plan
from bishare_dsl.plan.together import plan_of_shares
from bishare_dsl.rewrite.adapt import insert_first, unadapt
from bishare_dsl.rewrite.parts import AdapterParts, PlanCode
from bishare_dsl.rewrite.rewritten import base_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Handle(TunerLayer):
    """``model.bishare``: reads, saves, merges, exports and batches the adapters of a model.

    Attributes:
        adapters: by name, in order of addition.
        active: the names of the running adapters.
    """

    def origin(self) -> dict[str, Any]:
        """Return the fields of `ORIGIN` for the adapters in the model. PEFT adds heads for other tasks."""
        model: Any = self.model
        kind = base_class(type(model))
        task = task_type(model)
        return {
            "base_model": vars(model).get("name_or_path") or None,
            "base_revision": getattr(getattr(model, "config", None), "_commit_hash", None),
            "auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__},
            "task_type": task if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else None,
            "fingerprint": self.fingerprint(),
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the adapter's parameters themselves by their names in the plan, each once.

        With accelerate's offload, return the tensors that hold the values. With FSDP2, return the sharded
        tensors. These are first restored to the model, so do not call this during a forward.
        """
        reshard(self.model)
        return self.running.tensors()

    def get_delta_weight(
        self, path: str, adapter: str | None = None, share: str | None = None
    ) -> torch.Tensor:
        """Return what an adapter adds to a module's weight: dW ``(d_out, d_in)``, in float32.

        The scale of `set_scale` is in it. It is the same while the adapter is disabled.

        Args:
            path: of the module, as in ``plan.sites``.
            adapter: its name; by default the sum of all active ones.
            share: a name in the spec: what this share adds alone, also while it is disabled. None for
                all shares that are not disabled.

        Raises:
            AdapterError: no such adapter (BS640), module or share (BS600); a share is not linear (BS633);
                or a magnitude needs the base's weight, which is merged (BS643, BS629), sharded (BS645), or
                cannot be dequantised (BS623).
        """
        members = self.members(adapter)
        sites = {path: site for site in members[0].plan.sites for path in site.paths}
        if path not in sites:
            names = "+".join(member.name for member in members)
            help = nearest(path, sites)
            raise AdapterError(
                codes.UNKNOWN_PART(adapter=names, what="module", name=path, help=help)
            )
        check_shares(members, () if share is None else (share,))
        reshard(self.model)
        site = sites[path]
        total = torch.zeros(site.d_out, site.d_in)
        for member in members:
            plan = member.plan
            if share is not None:
                plan = plan_of_shares(member.scaled_plan, {share})
            weight = None
            if plan.magnitude(site.path) is not None:
                self._require_unmerged("read the base's weight")
                weight = merging.base_weight(self.model, linear_maps(self.model)[site.path])
            added = delta(plan, gather_tensors(plan, member.tensors()), site, weight)
            total = total.to(added.device) + added
        return total

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
        adapter = self.running
        model = self.model
        reproduced = None
        if frozen == "base":
            reproduced = singular_starts(adapter.saved_plan, model, torch.float64)
        origin = self.origin()

        def write(tensors: Mapping[str, torch.Tensor]) -> Any:
            return save_adapter(
                folder,
                adapter.saved_plan,
                tensors,
                adapter.spec_text,
                seed=adapter.seed,
                origin=origin,
                frozen=frozen,
                dtype=dtype,
                reproduced=reproduced,
            )

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

        def write(tensors: Mapping[str, torch.Tensor]) -> ExportReport:
            return export_adapter(
                out, self.plan, tensors, self.model, format, rank=rank, dtype=dtype
            )

        report = on_first_process(self.plan, self.tensors(), write)
        for problem in report.warnings:
            warnings.warn(render(problem), BishareWarning, stacklevel=2)
        return report

    def restorer(self) -> Callable[[], Callable[[], None] | None]:
        """Return a function that gives the base's weights their present values again.

        It returns a function to call last, if a merge has lost them: the model then refuses to run.
        """
        before = self._merged
        inside = before is not None and before.inside

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
        self._merged = Merged(False, MergeReport(0), inside=True)
        self._halfway = True
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
            safe_merge: reject values that are not finite with PEFT's `ValueError`; without it they are
                rejected too, with BS628.
            adapter_names: the adapters to merge instead of the running ones, which run again after
                `unmerge`. Adapters that are already merged stay merged.
            keep_base: keep copies of the weights on the CPU, required for `unmerge` and `disable_adapter`,
                and to undo a merge that is interrupted. Without them the model refuses to run after one.
            dequantize: replace quantised layers by dense ones.

        Raises:
            AdapterError: disabled (BS626), no such adapter (BS640), an update is not a matrix (BS633), or
                see `bishare_dsl.adapted.merge`, such as BS628; the model is not changed.
            ValueError: values are not finite and ``safe_merge`` is set, as in PEFT; caused by BS628.
        """
        if not isinstance(safe_merge, bool):
            raise TypeError("it writes no file: `merge_and_unload().save_pretrained(folder)` does")
        with self._switching("merge", enabled=True):
            merged = self.merged_adapters
            active = self.active
            more = self._own_names(check_adapters_to_merge(self, adapter_names))
            if not more:
                return self._merged.report if self._merged else MergeReport(0)
            if merged:
                self._restore("merge")
            self._switch([*merged, *more])
            try:
                report = self._merge(keep_base=keep_base, dequantize=dequantize)
            except AdapterError as error:
                if safe_merge and error.problems[0].code == codes.NOT_FINITE.code:
                    names = ", ".join(more)
                    text = f"NaNs detected in the merged weights. The adapter {names} seems to be broken"
                    raise ValueError(text) from error
                raise
            if not merged:
                self._before_merge = active
            for problem in report.survival.problems():
                warnings.warn(render(problem), BishareWarning, stacklevel=3)
            return report

    def _merge(self, *, keep_base: bool, dequantize: bool) -> MergeReport:
        model = self.model
        tensors = gather_tensors(self.plan, self.tensors())
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
            AdapterError, ValueError: see `merge`.
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

    def _check_alone(self, action: str) -> None:
        """Check that PEFT trains no module together with the running adapters.

        Raises:
            AdapterError: it does (BS686).
        """
        for name in self.active:
            path = self.trained_by_peft(self[name])
            if path is not None:
                help = "call `save_pretrained` or `merge_and_unload` of the `PeftModel`: it is included"
                raise AdapterError(codes.NOT_LOW_RANK(action=action, path=path, help=help))

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
        self._mixed = None
        self._hooks = ()
        vars(model).pop("peft_config", None)
        self._model = ()
        self._merged = None
        self._running = None
        self.parts = AdapterParts()
        self.adapters = {}
        self.active = ()
        return model


def in_model(model: nn.Module) -> Handle | None:
    """Return the handle of a model, if it has adapters of bishare."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    handle = getattr(base, ADAPTER, None)
    return handle if isinstance(handle, Handle) else None


def check_model(model: nn.Module, name: str) -> None:
    """Check that an adapter of a name can be put into a model.

    Raises:
        ModelError: `torch.compile` has wrapped a part of the model (BS403).
        AdapterError: the name is not one of a module, or a module of the base has it (BS638).
    """
    names: list[str] = []
    for path, module in model.named_modules():
        if not in_adapter(path):
            names += (path, *module._parameters)
        if "_orig_mod" in module._modules:  # Its children would not be found by their names.
            why = "`torch.compile` has wrapped it"
            help = "adapt the model first, then compile it"
            raise ModelError(CANNOT_ADAPT(path=path or "model", why=why, help=help))
    if fault := name_fault(name, module_names(names)):
        raise AdapterError(codes.NO_NAME(name=name, reason=fault))


def attach(
    model: nn.Module,
    name: str,
    plan: Plan,
    code: PlanCode,
    tensors: Mapping[str, torch.Tensor],
    spec_text: str,
    seed: int,
) -> tuple[str, ...]:
    """Insert an adapter into a model: its first one with a new handle, others into the handle.

    Args:
        model: stays the same object of the same class.
        name: of the adapter; it replaces one of this name.
        plan: of the adapter.
        code: compiled for the plan and the model.
        tensors: the plan's tensors by name; they become parameters of the model.
        spec_text: the text of the spec.
        seed: of the adapter.

    Returns:
        Notes on anything that differs from the request.

    Raises:
        AdapterError: see `Handle.add`; the model is unchanged.
    """
    handle = in_model(model)
    if handle is not None:
        return handle.add(name, plan, code, tensors, spec_text, seed)
    insert_first(model, code, tensors, root=Handle, name=name)
    first = in_model(model)
    assert first is not None
    first.bind(model, plan, spec_text, seed, name)
    return code.notes


def _refuse_half_merged(*_: Any) -> None:
    """Refuse a model of which an interrupted merge has changed some weights for good (BS629)."""
    raise AdapterError(codes.NOT_KEPT(action="run a model that is merged in part"))
