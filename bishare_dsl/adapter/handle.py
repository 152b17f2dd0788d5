"""``model.bishare``: what a user does with an adapted model."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import torch
from torch import nn

from bishare_dsl.adapter import merge as merging
from bishare_dsl.adapter.devices import gather_tensors, on_first_process
from bishare_dsl.adapter.files import save_adapter
from bishare_dsl.adapter.merge import Merged, MergeReport
from bishare_dsl.adapter.probe import Inputs, probe
from bishare_dsl.adapter.push import push_folder
from bishare_dsl.adapter.reference import reference as make_reference
from bishare_dsl.adapter.stored import Frozen, Rounded
from bishare_dsl.adapter.whole_model import forget_saving, warn_of_saving
from bishare_dsl.diagnostics import AdapterError, BishareWarning, render
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.export import export_adapter
from bishare_dsl.export.report import ExportReport
from bishare_dsl.models.hooks import reshard, resident_tensor
from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.plan import Plan
from bishare_dsl.plan.names import attribute
from bishare_dsl.rewrite.adapt import set_enabled, unadapt
from bishare_dsl.rewrite.placement import AdapterRoot, Placement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

_SWITCHING = threading.RLock()
"""Held while what runs in a model is exchanged."""

Method = TypeVar("Method", bound=Callable[..., Any])


def _exchanges(action: str) -> Callable[[Method], Method]:
    """Make a decorator of a method that exchanges what runs in the model."""

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def alone(self: Handle, *args: Any, **kwargs: Any) -> Any:
            with self._exchange(action):
                return method(self, *args, **kwargs)

        return cast(Method, alone)

    return decorate


class Handle(AdapterRoot):
    """An adapter of a model; it owns the tensors that belong to no one block."""

    plan: Plan
    spec_text: str
    seed: int
    name: str
    # In a tuple, where `nn.Module` does not register it: the model is not a child of its own child.
    _model: tuple[PreTrainedModel, ...] = ()
    _compact: bool = False
    _merged: Merged | None = None
    _disabled: int = 0

    def bind(self, model: nn.Module, plan: Plan, spec_text: str, seed: int, name: str) -> None:
        """Make this the handle of an adapter of a model. Whoever makes the adapter does so once."""
        self.plan, self.spec_text, self.seed, self.name = plan, spec_text, seed, name
        self._model = (cast("PreTrainedModel", model),)
        warn_of_saving(model)

    def _repr_html_(self) -> str:
        """Draw who shares what with whom, in a notebook."""
        from bishare_dsl.language import parse_spec
        from bishare_dsl.show.page import frame

        return frame(self.plan, parse_spec(self.spec_text))

    def freeze_compact(self) -> None:
        """Let nothing train from here on: the tensors are what a compact adapter keeps of them."""
        self._compact = True
        for tensor in self.tensors().values():
            tensor.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Train, or not, as any module does.

        Raises:
            AdapterError: the adapter was saved compactly (BS637).
        """
        if mode and self._compact:
            self.model.eval()  # The other modules of the model have been told to train already.
            raise AdapterError(codes.COMPACT_FOR_GOOD())
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to copy or pickle a disabled adapter: nothing would enable the copy again.

        Raises:
            AdapterError: it is disabled (BS626).
        """
        if self._disabled:
            raise AdapterError(codes.DISABLED(action="copy the model"))
        return super().__getstate__()

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

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the adapter's tensors by their names in the plan: the parameters themselves, each once.

        Under accelerate's offload these are the tensors that hold the values. Under FSDP2 they are the
        sharded tensors, which the model gets back first, so do not call this while a forward runs.
        """
        reshard(self.model)
        found = {}
        for _, store in self.placement.owned:
            for name in store.names:
                value = resident_tensor(store, attribute(name))
                assert value is not None, name
                found[name] = value
        return {tensor.name: found[tensor.name] for tensor in self.plan.tensors}

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield the adapter's tensors, each once, wherever in the model they live, for an optimizer.

        Without ``recurse`` those alone that the model itself owns.
        """
        if recurse:
            yield from self.placement.tensors().values()
        else:
            yield from super().parameters(recurse=False)

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train, counted in the model, in the words of the field."""
        model = self._here("count what trains")
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
    ) -> None:
        """Save the adapter, without its base, in one step; `load_adapter` loads it.

        An adapter that is in the folder is replaced, other files are left alone. A kill at any moment
        leaves the old adapter or the new one.

        Under FSDP2 every process calls this, and the first writes. Otherwise whoever calls it writes: of
        several processes with copies of the adapter (DDP), let one do so.

        Args:
            folder: made where it does not exist.
            frozen: frozen tensors are stored as the ``"seed"`` that draws them, or as ``"tensors"``. Those
                that are not what the seed draws are stored in any case, with a warning.
            compact: store only what running needs, where a transform (VectorBank) trains more: the same
                logits, and no more training. An adapter that was loaded compact is saved compact again.
            dtype: ``"bfloat16"`` rounds the tensors to it, for a file of half the size. Loaded, they are
                float32 again.

        Raises:
            AdapterError: as `bishare_dsl.adapter.files.save_adapter` does.
        """
        problems = self._by_one(
            lambda tensors: save_adapter(
                folder,
                self.plan,
                tensors,
                self.spec_text,
                seed=self.seed,
                base_revision=getattr(self.model.config, "_commit_hash", None),
                frozen=frozen,
                compact=compact or self._compact,
                dtype=dtype,
            )
        )
        for problem in problems:
            warnings.warn(render(problem), BishareWarning, stacklevel=2)

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        message: str | None = None,
        licence: str | None = None,
        **settings: Any,
    ) -> str:
        """Put the adapter on the Hub and return its address; ``load_adapter(name, model)`` loads the adapter.

        Args:
            name: and the others, as `push_folder` takes them.
            settings: as `save_pretrained` takes them.

        Raises:
            AdapterError: as `save_pretrained` and `push_folder` do.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, **settings)
            return push_folder(
                folder, name, private=private, revision=revision, message=message, licence=licence
            )

    def export(
        self,
        out: str | os.PathLike[str],
        format: str = "peft",
        *,
        rank: int | None = None,
        dtype: str | torch.dtype = torch.float32,
        uniform_rank: bool = False,
        experts: str = "fused",
        force: bool = False,
    ) -> ExportReport:
        """Write the adapter as a plain LoRA: a folder for PEFT and vLLM, or a file for llama.cpp.

        Under FSDP2 every process calls this, and the first writes.

        Args:
            out: the folder or file; it does not exist yet, unless ``force`` lets an export be replaced.
            format: ``"peft"`` or ``"gguf"``.
            rank: cut off what exceeds this rank; the report tells what that loses.
            dtype: of the values: float32, bfloat16 or float16.
            uniform_rank: one rank for all modules, for engines that know no ``rank_pattern``.
            experts: how a folder has experts of one parameter: ``"fused"`` for PEFT, ``"each"`` or
                ``"shared-outer"`` for vLLM and SGLang.

        Raises:
            AdapterError: as `bishare_dsl.export.export.export_adapter` does.
        """
        settings: Any = {"rank": rank, "dtype": dtype, "uniform_rank": uniform_rank, "force": force}
        settings["experts"] = experts
        report = self._by_one(
            lambda tensors: export_adapter(out, self.plan, tensors, self.model, format, **settings)
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
        with self._exchange("disable the adapter"):
            self._here("disable the adapter")
            if not self._disabled:
                self._to_base("disable the adapter")
            self._disabled += 1
        try:
            yield
        finally:
            with self._exchange("enable the adapter"):
                self._disabled -= 1
                if not self._disabled:
                    if self._merged is None:
                        set_enabled(self.model, True)
                    else:
                        self._merged.swap(self.model)

    def reference(self) -> PreTrainedModel:
        """Return a model that computes what this one does now, also after this one is trained further.

        DPO, KTO and GRPO measure a change from such a model, at any stage of training. Its base is this
        model's, the same tensors in memory; the adapter's tensors are copies, and no longer train.

        Raises:
            AdapterError: the adapter is disabled (BS626) or merged (BS620).
        """
        model = self._enabled("make a reference")
        if self._merged is not None:
            raise AdapterError(codes.ALREADY_MERGED())
        return make_reference(model)

    @_exchanges("merge")
    def merge(
        self,
        inputs: Inputs | None = None,
        *,
        keep_base: bool = True,
        dequantize: bool = False,
    ) -> MergeReport:
        """Merge the adapter into the base's weights, in float32, and measure what that changed.

        Args:
            inputs: to measure on, by keyword, or the model's main input, such as ``input_ids``; by default
                random inputs of the shapes in the model's config, always the same.
            keep_base: keep copies of the weights on the CPU, for `unmerge` and `disable_adapter`.
            dequantize: replace quantised layers by dense ones.

        Raises:
            AdapterError: merged already (BS620), disabled (BS626), an update is not a matrix (BS633), or as
                `bishare_dsl.adapter.merge` does; the model is as it was.
        """
        model = self._enabled("merge")
        if self._merged is not None:
            raise AdapterError(codes.ALREADY_MERGED())
        tensors = gather_tensors(self.plan, self.tensors())
        merging.check(model, self.plan, tensors, dequantize=dequantize)
        before = probe(model, inputs)
        set_enabled(model, False)
        try:
            self._merged = merging.merge(model, self.plan, tensors, keep_base=keep_base)
        except BaseException:
            set_enabled(model, True)
            raise
        after = before if before.output is None else probe(model, before.inputs)
        return merging.report(self._merged, before, after)

    @_exchanges("unmerge")
    def unmerge(self) -> None:
        """Restore the base's weights, bit for bit, and let the adapter run beside them again.

        Raises:
            AdapterError: not merged (BS621), disabled (BS626), or the base was not kept (BS629).
        """
        model = self._enabled("unmerge")
        if self._merged is None:
            raise AdapterError(codes.NOT_MERGED())
        self._to_base("unmerge")
        self._merged = None
        set_enabled(model, True)

    @_exchanges("merge")
    def merge_and_unload(self, *, dequantize: bool = False) -> PreTrainedModel:
        """Merge for good, and return the model without any trace of bishare.

        The other adapters in memory are dropped. Where layers are dequantised, so are those that the
        adapter does not touch: the model saves and loads as a dense one.

        Raises:
            AdapterError: as `merge` does.
        """
        model = self._enabled("merge")
        if self._merged is None:
            self.merge(keep_base=False, dequantize=dequantize)
        assert self._merged is not None
        if dequantize or self._merged.dequantized:
            merging.make_dense(model)
        return self._leave(model)

    @_exchanges("unload")
    def unload(self) -> PreTrainedModel:
        """Take the adapter out, and the others in memory, and return the base as it was before.

        Raises:
            AdapterError: disabled (BS626), or merged without keeping the base (BS629).
        """
        model = self._enabled("unload")
        if self._merged is not None:
            self.unmerge()
        return self._leave(model)

    def extra_repr(self) -> str:
        if not self._model:
            return "unloaded"
        modules = sum(1 for terms in self.plan.terms_of.values() if terms)
        return (
            f"{self.plan.spec}: {self.plan.trainable:,} trainable parameters at {modules} modules, "
            f"{self._state()}"
        )

    def _state(self) -> str:
        return "disabled" if self._disabled else "merged" if self.merged else "active"

    @contextmanager
    def _exchange(self, action: str) -> Iterator[None]:
        """Open a block in which what runs in the model is exchanged, by one thread at a time.

        Raises:
            AdapterError: the adapter was unloaded (BS627).
        """
        with _SWITCHING:
            assert self.model is not None
            yield

    def _here(self, action: str) -> PreTrainedModel:
        """Return the model, if the adapter runs in it, for an action that needs that."""
        return self.model

    def _enabled(self, action: str) -> PreTrainedModel:
        model = self._here(action)
        if self._disabled:
            raise AdapterError(codes.DISABLED(action=action))
        return model

    def _to_base(self, action: str) -> None:
        if self._merged is None:
            set_enabled(self.model, False)
        elif self._merged.kept:
            self._merged.swap(self.model)
        else:
            raise AdapterError(codes.NOT_KEPT(action=action))

    def _leave(self, model: PreTrainedModel) -> PreTrainedModel:
        unadapt(model)
        forget_saving(model)
        self._forget()
        return model

    def _forget(self) -> None:
        self._model, self._merged = (), None
        self.placement = Placement()
