"""``model.bishare``: what a user does with an adapted model."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import torch
from torch import nn

from bishare_dsl.adapter import merge as merging
from bishare_dsl.adapter.devices import gather_tensors, on_first_process
from bishare_dsl.adapter.files import save_adapter
from bishare_dsl.adapter.merge import Merged, MergeReport
from bishare_dsl.adapter.own_methods import RESIZING, SAVING, drop_methods, put_methods
from bishare_dsl.adapter.singular import singular_starts
from bishare_dsl.adapter.stored import Frozen, Rounded
from bishare_dsl.diagnostics import AdapterError, BishareWarning, nearest, render
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.export import export_adapter
from bishare_dsl.export.report import ExportReport
from bishare_dsl.mixed.bank import TrainingBank
from bishare_dsl.mixed.batches import MixedBatches
from bishare_dsl.models.hooks import is_sharded, reshard, resident_tensor
from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.plan import Plan
from bishare_dsl.plan.names import attribute
from bishare_dsl.plan.together import name_of, plan_together
from bishare_dsl.rewrite.adapt import attach, compile_plan, place, unadapt
from bishare_dsl.rewrite.owned import OwnedTensors
from bishare_dsl.rewrite.parts import AdapterParts, AdapterRoot, PlanCode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

_SWITCHING = threading.RLock()
"""Held while what runs in a model is exchanged."""


@dataclass(eq=False)
class Adapter:
    """An adapter of a model: what it says, and the modules in which its tensors are."""

    name: str
    plan: Plan
    spec_text: str
    seed: int
    compiled: PlanCode
    parts: AdapterParts
    sources: Mapping[str, tuple[OwnedTensors, int]]
    """Where each tensor is, by its name in the plan, and its number there."""
    compact: bool = False
    bank: tuple[TrainingBank, int] | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by their names in the plan: the parameters themselves, each once.

        Under accelerate's offload these are the tensors that hold the values.
        """
        found = {}
        for name in self.plan.tensor:
            store, number = self.sources[name]
            value = resident_tensor(store, store.attributes[number])
            assert value is not None, name
            found[name] = value
        return found

    @property
    def drops(self) -> bool:
        """Whether its terms drop values of their inputs in training."""
        return any(store.drops for _, store in self.parts.owned)

    def set_trainable(self, trainable: bool) -> None:
        """Let those of its tensors train that the spec trains, or none.

        Raises:
            AdapterError: it was saved compactly (BS637).
        """
        if trainable and self.compact:
            raise AdapterError(codes.COMPACT_FOR_GOOD())
        for name, (store, number) in self.sources.items():
            parameter = store.get_parameter(store.attributes[number])
            parameter.requires_grad_(trainable and self.plan.tensor[name].trainable)


class Handle(AdapterRoot):
    """The adapters of a model, of which one runs: the others' tensors stand in the model beside its.

    Attributes:
        adapters: by name, in the order in which they came.
        active: the names of those that run.
    """

    adapters: dict[str, Adapter]
    active: tuple[str, ...] = ()
    # In a tuple, where `nn.Module` does not register it: the model is not a child of its own child.
    _model: tuple[PreTrainedModel, ...] = ()
    _running: Adapter | None = None
    _merged: Merged | None = None
    _disabled: int = 0
    _mixed: MixedBatches | None = None

    def bind(self, model: nn.Module, plan: Plan, spec_text: str, seed: int, name: str) -> None:
        """Make this the handle of the adapter that was put into a model. Whoever puts it there does so
        once.
        """
        self._model = (cast("PreTrainedModel", model),)
        sources = self.parts.sources()
        first = Adapter(name, plan, spec_text, seed, self.compiled, self.parts, sources)
        self.adapters, self.active, self._running = {name: first}, (name,), first
        self._watch(model)

    def _watch(self, model: nn.Module) -> None:
        """Let what would save or resize the model ask here."""
        put_methods(model, SAVING, RESIZING)

    def _repr_html_(self) -> str:
        """Draw who shares what with whom, in a notebook."""
        from bishare_dsl.language import parse_spec
        from bishare_dsl.show.page import frame

        return frame(self.plan, parse_spec(self.spec_text))

    @property
    def running(self) -> Adapter:
        """The adapter that runs; several that run together are one.

        Raises:
            AdapterError: none does, for the last was deleted (BS627).
        """
        if self._running is None:
            raise AdapterError(codes.UNLOADED())
        return self._running

    @property
    def plan(self) -> Plan:
        """The plan of the adapter that runs."""
        return self.running.plan

    @property
    def spec_text(self) -> str:
        """The text of its spec."""
        return self.running.spec_text

    @property
    def seed(self) -> int:
        """The seed that drew it."""
        return self.running.seed

    @property
    def name(self) -> str:
        """Its name."""
        return self.running.name

    def train(self, mode: bool = True) -> Self:
        """Train, or not, as any module does.

        Raises:
            AdapterError: the adapter was saved compactly (BS637), or a mixed batch is open (BS674).
        """
        if mode and self._running is not None:
            try:
                with self._exchange("train"):
                    if self._running.compact:
                        raise AdapterError(codes.COMPACT_FOR_GOOD())
            except AdapterError:
                self.model.eval()  # The other modules of the model have been told to train already.
                raise
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to copy or pickle a disabled adapter: nothing would enable the copy again.

        Raises:
            AdapterError: it is disabled (BS626).
        """
        if self._disabled:
            raise AdapterError(codes.DISABLED(action="copy the model"))
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
    def merged(self) -> bool:
        """Whether the adapter is in the base's weights now."""
        return self._merged is not None

    @property
    def disabled(self) -> bool:
        """Whether the model runs as its base now."""
        return bool(self._disabled)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the adapter's tensors by their names in the plan: the parameters themselves, each once.

        Under accelerate's offload these are the tensors that hold the values. Under FSDP2 they are the
        sharded tensors, which the model gets back first, so do not call this while a forward runs.
        """
        reshard(self.model)
        return self.running.tensors()

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield the adapter's tensors, each once, wherever in the model they live, for an optimizer.

        The handle itself owns none: without ``recurse`` there are none.
        """
        if recurse:
            for name in self.active:
                yield from self.adapters[name].parts.tensors().values()

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train, counted in the model, in the words of the field."""
        model = self._enabled("count what trains", disabled=True)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        # `inspect_model` counts a quantised weight as what it stands for.
        everything = inspect_model(model).parameters
        everything += sum(tensor.numel() for tensor in self.tensors().values())
        print(  # noqa: T201 - what it is for
            f"trainable params: {trainable:,} || all params: {everything:,} || "
            f"trainable%: {100 * trainable / everything:.4f}"
        )

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        frozen: Frozen = "seed",
        compact: bool = False,
        dtype: Rounded = None,
        state_dict: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Save the adapter, without its base, as a folder that `load_adapter` and PEFT load.

        An adapter that is in the folder is replaced, other files are left alone. A kill at any moment
        leaves the old adapter or the new one.

        Under FSDP2 every process calls this, and the first writes. Otherwise whoever calls it writes: of
        several processes with copies of the adapter (DDP), let one do so.

        Args:
            folder: made where it does not exist.
            frozen: frozen tensors are stored as the ``"seed"`` that draws them, or as ``"tensors"``. Those
                that are not what the seed draws are stored in any case, with a warning. ``"base"`` also
                leaves out those that the base's weights give, which loading makes again from them.
            compact: store only what running needs, where a transform (VectorBank) trains more: the same
                logits, and no more training. An adapter that was loaded compact is saved compact again.
            dtype: ``"bfloat16"`` or ``torch.bfloat16`` rounds the tensors to it, for a file of half the size.
                Loaded, they are float32 again.
            state_dict: of the whole model, where the caller has gathered it; values are taken from there.

        Raises:
            AdapterError: as `bishare_dsl.adapter.files.save_adapter` does.
        """
        adapter, remade = self.running, None
        if frozen == "base":
            remade = singular_starts(adapter.plan, self.model, torch.float64)

        def write(tensors: Mapping[str, torch.Tensor]) -> Any:
            return save_adapter(
                folder,
                adapter.plan,
                tensors,
                adapter.spec_text,
                seed=adapter.seed,
                base_revision=getattr(getattr(self.model, "config", None), "_commit_hash", None),
                frozen=frozen,
                compact=compact or adapter.compact,
                dtype=dtype,
                remade=remade,
            )

        if state_dict is None:
            problems = self._by_one(write)
        else:
            keys = adapter_keys(self.model, adapter)
            problems = write({name: state_dict[key] for key, name in keys.items()})
        for problem in problems:
            warnings.warn(render(problem), BishareWarning, stacklevel=2)

    def export(
        self,
        out: str | os.PathLike[str],
        format: str = "peft",
        *,
        rank: int | None = None,
        dtype: str | torch.dtype = torch.float32,
        uniform_rank: bool = False,
        experts: str = "fused",
    ) -> ExportReport:
        """Write the adapter as a plain LoRA: a folder for PEFT and vLLM, or a file for llama.cpp.

        Under FSDP2 every process calls this, and the first writes.

        Args:
            out: the folder or file, which is not there or an empty folder.
            format: ``"peft"``, ``"gguf"`` or ``"mlx"``.
            rank: cut off what exceeds this rank; the report tells what that loses.
            dtype: of the values: float32, bfloat16 or float16.
            uniform_rank: one rank for all modules, for engines that know no ``rank_pattern``.
            experts: how a folder has experts of one parameter: ``"fused"`` for PEFT, ``"each"`` or
                ``"shared-outer"`` for vLLM and SGLang.

        Raises:
            AdapterError: as `bishare_dsl.export.export.export_adapter` does.
        """
        how: Any = {"rank": rank, "dtype": dtype, "uniform_rank": uniform_rank, "experts": experts}
        report = self._by_one(
            lambda tensors: export_adapter(out, self.plan, tensors, self.model, format, **how)
        )
        for problem in report.warnings:
            warnings.warn(render(problem), BishareWarning, stacklevel=2)
        return report

    def _by_one(self, write: Callable[[dict[str, torch.Tensor]], T]) -> T:
        """Return what ``write`` returns for whole tensors; of several processes with parts, one calls it."""
        tensors = self.tensors()
        values = gather_tensors(self.plan, tensors)
        return on_first_process(tensors, lambda: write(values))

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Make the model its base in a block, merged or not; blocks may be nested.

        The adapter is disabled for all threads, from the first block in any thread to the end of the last.

        Raises:
            AdapterError: the adapter was merged without keeping the base (BS629).
        """
        self.disable()
        try:
            yield
        finally:
            self.enable()

    def disable(self) -> None:
        """Make the model its base, until `enable` is called as often as this."""
        with self._exchange("disable the adapter"):
            if not self._disabled:
                self._to_base("disable the adapter")
            self._disabled += 1

    def enable(self) -> None:
        """Undo one `disable`."""
        with self._exchange("enable the adapter"):
            self._disabled -= 1
            if not self._disabled:
                if self._merged is None:
                    self.parts.enable(True)
                else:
                    self._merged.swap(self.model)

    def merge(
        self,
        *,
        keep_base: bool = True,
        dequantize: bool = False,
        stochastic_seed: int | None = None,
    ) -> MergeReport:
        """Merge the adapter into the base's weights, in float32, and report how the sums were rounded.

        A warning says where rounding loses more than a tenth of the update (BS639).

        Args:
            keep_base: keep copies of the weights on the CPU, for `unmerge` and `disable_adapter`.
            dequantize: replace quantised layers by dense ones.
            stochastic_seed: round up or down at random, so that on average nothing is lost.

        Raises:
            AdapterError: merged already (BS620), disabled (BS626), an update is not a matrix (BS633), or as
                `bishare_dsl.adapter.merge` does; the model is as it was.
        """
        with self._exchange("merge"):
            model = self._enabled("merge")
            if self._merged is not None:
                raise AdapterError(codes.ALREADY_MERGED())
            tensors = gather_tensors(self.plan, self.tensors())
            merging.check(model, self.plan, tensors, dequantize=dequantize)
            self.parts.enable(False)
            try:
                self._merged = merging.merge(
                    *(model, self.plan, tensors),
                    keep_base=keep_base,
                    stochastic_seed=stochastic_seed,
                )
            except BaseException:
                self.parts.enable(True)
                raise
            for problem in self._merged.report.survival.problems():
                warnings.warn(render(problem), BishareWarning, stacklevel=3)
            return self._merged.report

    def unmerge(self) -> None:
        """Restore the base's weights, bit for bit, and let the adapter run beside them again.

        Raises:
            AdapterError: not merged (BS621), disabled (BS626), or the base was not kept (BS629).
        """
        with self._exchange("unmerge"):
            self._enabled("unmerge")
            if self._merged is None:
                raise AdapterError(codes.NOT_MERGED())
            self._to_base("unmerge")
            self._merged = None
            self.parts.enable(True)

    def merge_and_unload(self, *, dequantize: bool = False) -> PreTrainedModel:
        """Merge for good, and return the model without any trace of bishare.

        Other adapters of the model are dropped. Where layers are dequantised, so are those that the
        adapter does not touch: the model saves and loads as a dense one.

        Raises:
            AdapterError: as `merge` does.
        """
        with self._exchange("merge"):
            model = self._enabled("merge")
            if self._merged is None:
                self.merge(keep_base=False, dequantize=dequantize)
            assert self._merged is not None
            if dequantize or self._merged.report.dequantized:
                merging.make_dense(model)
            return self._leave(model)

    def unload(self) -> PreTrainedModel:
        """Take the adapters out, and return the base as it was before.

        Raises:
            AdapterError: disabled (BS626), or merged without keeping the base (BS629).
        """
        with self._exchange("unload"):
            model = self._enabled("unload")
            if self._merged is not None:
                self.unmerge()
            return self._leave(model)

    # Several adapters: what PEFT's methods call -----------------------------------------------------

    def add(
        self,
        name: str,
        plan: Plan,
        tensors: Mapping[str, torch.Tensor],
        spec_text: str,
        seed: int,
        compact: bool = False,
    ) -> tuple[str, ...]:
        """Put another adapter into the model, beside the one that runs.

        Returns:
            Notes, as `adapt` gives them, for the first adapter of a plan.

        Raises:
            AdapterError: the name is in use (BS641) or the model is sharded (BS645).
            ModelError, SpecError: as `compile_plan` does.
        """
        if name in self.adapters:
            raise AdapterError(codes.NAME_IN_USE(name=name))
        self._apart("load another adapter")
        with _SWITCHING, torch.inference_mode(False):  # In which it could never train.
            alike = (a.compiled for a in self.adapters.values() if a.plan.runs_as(plan))
            compiled = next(alike, None)
            notes = () if compiled else (compiled := compile_plan(self.model, plan)).notes
            assert compiled is not None
            parts = place(self.model, compiled, tensors)
            parts.join(name)
            self.adapters[name] = Adapter(
                name, plan, spec_text, seed, compiled, parts, parts.sources(), compact
            )
        return notes

    def activate(self, names: Sequence[str]) -> None:
        """Let other adapters run, several together or none.

        A forward that runs meanwhile in another thread, and is of no mixed batch, is of no one adapter: let
        it end first.

        Raises:
            AdapterError: no such name (BS640), the model is merged (BS643, BS629) or sharded (BS645), a mixed
                batch is open (BS674), or an adapter trains in full what another one changes (BS665).
        """
        with self._exchange("switch adapters"):
            names = tuple(dict.fromkeys(names))
            chosen = [self[name] for name in names]
            if names == self.active and self._running is not None:
                return
            self._apart("switch adapters")
            running = chosen[0] if len(chosen) == 1 else self._together(chosen)
            self.parts.remove()
            self.active, self._running = names, running
            self.parts = running.parts if running else AdapterParts()
            self.parts.insert()
            if self._disabled:
                self.parts.enable(False)

    def __getitem__(self, name: str) -> Adapter:
        """Return an adapter of the model.

        Raises:
            AdapterError: no such name (BS640).
        """
        if name not in self.adapters:
            raise AdapterError(codes.UNKNOWN_ADAPTER(name=name, help=nearest(name, self.adapters)))
        return self.adapters[name]

    def drop(self, name: str) -> None:
        """Take an adapter out of the model. One that runs makes room for the first of the others."""
        with self._exchange("delete an adapter"):
            self[name]
            if name in self.active:
                rest = [other for other in self.active if other != name]
                self.activate(rest or [other for other in self.adapters if other != name][:1])
            self.adapters.pop(name).parts.leave(name)

    @contextmanager
    def rows(self, adapter_names: Iterable[str | None]) -> Iterator[None]:
        """Open a block in which each row of the model's input has an adapter of its own, in this thread.

        In training mode each row's adapter gets the gradients of its rows, if it trains: adapters that do not
        run are frozen until ``handle[name].set_trainable(True)``. Dropout drops other values in each row.

        Args:
            adapter_names: for each row an adapter's name, or None (``"__base__"`` in PEFT) for the base.

        Raises:
            AdapterError: as `MixedBatches.batch` does.
        """
        with _SWITCHING:
            if self._mixed is None:
                self._mixed = MixedBatches(self.model, self.adapters, self._check_mixed)
        with self._mixed.open(adapter_names):
            yield

    @contextmanager
    def bank(
        self,
        names: Sequence[str],
        shared: frozenset[str] = frozenset(),
        fixed: frozenset[str] = frozenset(),
    ) -> Iterator[TrainingBank]:
        """Let adapters train together in a block, in the rows of mixed batches.

        Their parameters are views of the bank, which trains in their place: to be saved, merged and switched
        they are what they were.

        Args:
            names: of the adapters.
            shared: the names of tensors that are to be one for all; then all have one plan. The first's stay.
            fixed: of tensors that do not train.
        """
        members = [self[name] for name in names]
        for member in members:
            member.set_trainable(True)
            for name in fixed:
                member.parts.tensors()[name].requires_grad_(False)
        bank = TrainingBank([member.parts.tensors() for member in members], shared)
        for row, member in enumerate(members):
            member.bank = bank, row
        try:
            yield bank
        finally:
            for member in members:
                member.bank = None
                member.set_trainable(member.name in self.active)

    def _check_mixed(self) -> None:
        """See that nothing about the adapter that runs keeps rows from having others.

        Raises:
            AdapterError: it is disabled (BS626), merged (BS643, BS629), or trains parameters in full (BS687);
                or the model is sharded (BS645).
        """
        self._enabled("run a mixed batch")
        self._apart("run a mixed batch")
        if self._running is not None and self.plan.trained:
            path = self.plan.trained[0].parameter
            raise AdapterError(codes.MIXED_WHOLE(name=self.name, path=path))

    def _together(self, adapters: Sequence[Adapter]) -> Adapter | None:
        """Make one adapter of several, of their own tensors."""
        if not adapters:
            return None
        plan = plan_together([adapter.plan for adapter in adapters])
        paths = [path for trained in plan.trained for path in trained.paths]
        paths += [f"{path}.weight" for site in plan.sites for path in (site.path, *site.tied)]
        if twice := next((path for path in paths if paths.count(path) > 1), None):
            raise AdapterError(codes.TRAINED_TWICE(path=twice))
        sources = {
            name_of(i, name): source
            for i, adapter in enumerate(adapters)
            for name, source in adapter.sources.items()
        }
        compiled = compile_plan(self.model, plan)
        return Adapter(
            "+".join(adapter.name for adapter in adapters),
            plan,
            adapters[0].spec_text,
            adapters[0].seed,
            compiled,
            attach(self.model, compiled, sources),
            sources,
            any(adapter.compact for adapter in adapters),
        )

    def extra_repr(self) -> str:
        if not self._model or self._running is None:
            return "unloaded"
        modules = sum(1 for terms in self.plan.terms_of.values() if terms)
        state = "disabled" if self._disabled else "merged" if self.merged else "active"
        return f"{self.plan.spec}: {self.plan.trainable:,} trainable parameters at {modules} modules, {state}"

    def _enabled(self, action: str, *, disabled: bool = False) -> PreTrainedModel:
        """Return the model, if its adapter is not disabled, or may be."""
        if self._disabled and not disabled:
            raise AdapterError(codes.DISABLED(action=action))
        return self.model

    def _apart(self, action: str) -> None:
        """See that the adapter is not in the base's weights, and the model in one process.

        Raises:
            AdapterError: it is merged (BS643, BS629), or the model is sharded (BS645).
        """
        if self._merged is not None:
            code = codes.STILL_MERGED if self._merged.kept else codes.NOT_KEPT
            raise AdapterError(code(action=action))
        if any(is_sharded(region) for region, _ in self.parts.regions):
            raise AdapterError(codes.SHARDED(action=action))

    @contextmanager
    def _exchange(self, action: str) -> Iterator[None]:
        """Open a block in which what runs in the model is exchanged, by one thread at a time.

        Raises:
            AdapterError: the adapter was unloaded (BS627), or a mixed batch is open (BS674).
        """
        with _SWITCHING, self._mixed.closed(action) if self._mixed else nullcontext():
            assert self.model is not None
            yield

    def _to_base(self, action: str) -> None:
        if self._merged is None:
            self.parts.enable(False)
        elif self._merged.kept:
            self._merged.swap(self.model)
        else:
            raise AdapterError(codes.NOT_KEPT(action=action))

    def _leave(self, model: PreTrainedModel) -> PreTrainedModel:
        unadapt(model)
        drop_methods(model)
        if self._mixed is not None:
            self._mixed.leave()
        self._mixed = None
        self._model, self._merged, self._running = (), None, None
        self.parts, self.adapters, self.active = AdapterParts(), {}, ()
        return model


def adapter_keys(model: nn.Module, adapter: Adapter) -> dict[str, str]:
    """Return the names in the plan of an adapter's tensors, by their keys in the model's `state_dict`."""
    # torch leaves the wrappers out that shard a layer or compute its activations twice.
    wrappers = re.compile(r"\b_(checkpoint|fsdp)_wrapped_module\.")
    paths = {id(module): wrappers.sub("", path) for path, module in model.named_modules()}
    return {
        f"{paths[id(store)]}.{attribute(name)}": name
        for name, (store, _) in adapter.sources.items()
    }
