"""Adapters of bishare as PEFT's: what switches, merges, saves and loads them for `PeftModel`.

What is private to PEFT stands here and in `types`; `tests/peft/test_private.py` notices a change. The state
of a model's adapters is in ``model.bishare``, which is a tuner layer of PEFT: `inject_adapter_in_model`, by
which transformers takes adapters in, keeps nothing but the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import register_peft_method, save_and_load, set_additional_trainable_modules
from torch import nn

from bishare_dsl.adapter.config import PEFT_TYPE, AdapterConfig
from bishare_dsl.adapter.contents import (
    attribute_in,
    base_problems,
    check_names,
    check_plan,
    complete,
    digest_of,
    expected,
    names_of,
    tensor_problems,
)
from bishare_dsl.adapter.devices import devices, move_tensors
from bishare_dsl.adapter.files import CONFIG, pack
from bishare_dsl.adapter.files import TENSORS as TENSORS_FILE
from bishare_dsl.adapter.handle import Handle, adapter_keys
from bishare_dsl.adapter.own_methods import RESIZING, put_methods
from bishare_dsl.adapter.recipes import check_remade
from bishare_dsl.adapter.sharing import check_sharing
from bishare_dsl.adapter.stored import entries_of, not_finite, widen_tensor
from bishare_dsl.compiler import ResolvedSpec, install, make_plan, read_spec
from bishare_dsl.diagnostics import AdapterError, BishareWarning, raise_errors, render
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models import architecture_of
from bishare_dsl.models.inspect import TENSORS
from bishare_dsl.peft.config import Beside, BishareConfig
from bishare_dsl.peft.types import peft_type
from bishare_dsl.plan.names import attribute


class PeftHandle(Handle, BaseTunerLayer):
    """``model.bishare`` as the one tuner layer of PEFT that knows of all adapters of a model."""

    adapter_layer_names = ("by_adapter",)
    other_param_names = ()

    # A tuner layer gives the weight of the layer that it wraps. This one wraps none.
    weight = property()
    bias = property()

    def _watch(self, model: nn.Module) -> None:
        put_methods(model, RESIZING)  # How the model is saved is PEFT's.

    @property
    def by_adapter(self) -> nn.ModuleDict:
        """The parameters of each adapter, for PEFT's reports."""
        return nn.ModuleDict(
            {
                name: nn.ParameterList(
                    p for n, p in a.parts.tensors().items() if a.plan.tensor[n].trainable
                )
                for name, a in self.adapters.items()
            }
        )

    @property
    def disable_adapters(self) -> bool:
        return self.disabled

    @property
    def active_adapter(self) -> list[str]:
        return [*self.active]

    @property
    def merged_adapters(self) -> list[str]:  # type: ignore[override]
        return [*self.active] if self.merged else []

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Let some adapters run, and train unless ``inference_mode``."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        self.activate(names)
        for name, adapter in self.adapters.items():
            trains = name in names and not inference_mode and not adapter.compact
            adapter.set_trainable(trains)

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self[name].set_trainable(requires_grad)

    def enable_adapters(self, enabled: bool) -> None:
        if enabled == self.disabled:
            self.enable() if enabled else self.disable()

    def delete_adapter(self, adapter_name: str) -> None:
        if adapter_name not in self.adapters:
            return  # Another method's, in a model that has adapters of both.
        others = [name for name in self.adapters if name != adapter_name]
        if self.active == (adapter_name,) and others:
            warnings.warn(
                f"Adapter {adapter_name} was active which is now deleted. Setting active adapter to "
                f"{others[0]}.",
                stacklevel=2,
            )
        # One that was saved compactly never trains, and says nothing of those that run after it.
        compact = adapter_name in self.active and self[adapter_name].compact
        trains = compact or any(p.requires_grad for p in self.parameters())
        self.drop(adapter_name)
        for name in self.active:
            self[name].set_trainable(trains and not self[name].compact)

    def merge(
        self,
        safe_merge: bool | None = None,
        adapter_names: list[str] | None = None,
        **settings: Any,
    ) -> Any:
        """Merge as `Handle.merge` does, or as PEFT calls it.

        Args:
            safe_merge: is what PEFT gives; values are always checked, and named as PEFT does if it is set.
            adapter_names: to merge others than those that run, beside those that are merged; they run then.
        """
        if safe_merge is None:
            return super().merge(**settings)
        chosen = check_adapters_to_merge(self, adapter_names)
        more = [name for name in chosen if name in self.adapters]
        if not more:
            return None
        if before := self.merged_adapters:
            super().unmerge()
        try:
            self.activate([*before, *more])
            with _in_words_of_peft(self, safe_merge):
                return super().merge()
        except BaseException:
            if before:
                self.activate(before)
                super().merge()
            raise

    def unmerge(self) -> None:
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        super().unmerge()

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        adapter = self[adapter_name]
        move_tensors(adapter.parts.tensors(), devices(adapter.plan, self.model))


class BishareModel(BaseTuner):
    """The tuner of PEFT that puts compiled adapters into a model."""

    prefix = "bishare_"
    tuner_layer_cls = PeftHandle
    target_module_mapping: dict[str, list[str]] = {}

    def __init__(
        self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        # transformers, which fills the tensors in by itself, gives the config alone; `PeftModel` gives a
        # dict.
        if isinstance(peft_config, BishareConfig) and (peft_config.bishare or {}).get("compact"):
            raise AdapterError(codes.COMPACT_BY_TRANSFORMERS())
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Compile the spec of an adapter into the model, or beside the adapters that it has.

        Raises:
            BishareError: the spec does not fit the model, or the model takes no other adapter; nothing
            was changed.
        """
        configs = cast("dict[str, BishareConfig]", self.peft_config)
        config = configs[adapter_name]
        compact = bool((config.bishare or {}).get("compact"))
        if compact and not config.inference_mode:
            raise AdapterError(codes.COMPACT_FOR_GOOD())
        found = _planned(config, model)
        stored = frozenset[str]()  # What comes from a file needs no first values.
        if low_cpu_mem_usage and (record := config.stored()) is not None:
            names = frozenset(found.plan.tensor)
            stored = names.difference(record.drawn, record.of_base, record.marks)
        handle: Any = getattr(model, "bishare", None)
        if isinstance(handle, Handle) and not isinstance(handle, PeftHandle):
            handle.__class__ = PeftHandle  # `compile_spec` has put it there, without PEFT.
        first = not isinstance(handle, Handle)
        adapters = {} if first else handle.adapters
        there = adapters.get(adapter_name)
        if there is not None and there.plan.digest == found.plan.digest:
            # `compile_spec` has put it there.
            config.spec, config.seed = there.spec_text, there.seed
            return
        plans = [found.plan, *(adapter.plan for adapter in adapters.values())]
        copied = tuple(name for c in configs.values() for name in c.modules_to_save or ())
        for path in (site.path for plan in plans for site in plan.sites):
            modules = accumulate(path.split("."), "{}.{}".format)
            if any(module.endswith(copied) for module in modules):  # So does PEFT find them.
                raise AdapterError(codes.TRAINED_TWICE(path=path))
        notes = install(model, found, config.seed, adapter_name, handle=PeftHandle, unfilled=stored)
        _warn(*(render(problem, found.where) for problem in found.problems), *notes)
        adapter = cast(PeftHandle, model.bishare)[adapter_name]
        adapter.compact = compact
        adapter.set_trainable(first and not config.inference_mode)
        beside = Beside()
        beside.of_spec = frozenset(
            part for t in found.plan.trained for path in t.paths for part in path.split(".")[:-1]
        )
        beside.extend(config.modules_to_save or ())
        config.modules_to_save = beside if beside or config.task_type else None
        set_additional_trainable_modules(
            model=model,
            peft_config=config,
            model_config=self.get_model_config(model),
            adapter_name=adapter_name,
            activate_adapter=adapter_name in self.active_adapters,
        )

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        handle = cast(PeftHandle, self.model.bishare)
        if merge:
            if adapter_names is not None and handle.merged:
                handle.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            elif adapter_names is not None:
                handle.activate(adapter_names)
            with _in_words_of_peft(handle, safe_merge):
                handle.merge_and_unload() if handle.active else handle.unload()
        else:
            handle.unload()
        return (
            super()._unload_and_optionally_merge(  # What PEFT itself wraps, such as a classifier.
                merge=merge, progressbar=False, safe_merge=safe_merge, adapter_names=adapter_names
            )
        )

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        """Nothing is left to do: `install` lets the base train no more."""

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Let the tensors have the type of the base, where they are not to be float32, as they are drawn."""
        if autocast_adapter_dtype:
            return
        base = next(p for p in self.model.parameters() if p.is_floating_point())
        for parameter in self.model.bishare[adapter_name].parts.tensors().values():
            parameter.data = parameter.data.to(base.dtype)

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("bishare compiles a whole model")

    def _check_merge_allowed(self) -> None:
        """Nothing is checked here: `merge` checks each weight."""

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Open a mixed batch for a call that names an adapter for each row."""
        names = kwargs.get("adapter_names")
        with self.model.bishare.rows(names) if names is not None else nullcontext():
            yield

    # Files --------------------------------------------------------------------------------------------------

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """Return what is stored of an adapter by the keys of the model, and note in the config what that
        is.
        """
        config = cast(BishareConfig, config)
        adapter = _handle_of(model)[adapter_name]
        keys = {name: key for key, name in adapter_keys(model, adapter).items()}
        tensors = {name: state_dict[key] for name, key in keys.items()}
        stored, record, problems = pack(
            adapter.plan,
            tensors,
            adapter.spec_text,
            seed=adapter.seed,
            base_revision=config.revision,
            compact=adapter.compact,
        )
        record = record.model_copy(update={"tensors": digest_of(entries_of(stored))})
        config.spec, config.seed, config.bishare = record.spec, record.seed, record.record()
        _warn(*map(render, problems))
        places = {name: key.rpartition(".")[0] for name, key in keys.items()}
        owners = {attribute(name): place for name, place in places.items()}
        return {
            f"{owners[attribute_in(key).partition(':')[0]]}.{attribute_in(key)}": value
            for key, value in stored.items()
        }

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f"{TENSORS}.{adapter_name}.", f"{TENSORS}.")

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Return the values of an adapter by the keys of the model, if they are what its config says.

        Raises:
            AdapterError: they are not (BS607, BS609 to BS612), or as `StoredAdapter.tensors`.
        """
        config = cast(BishareConfig, config)
        adapter = _handle_of(model)[adapter_name]
        own = {key: value for key, value in state_dict.items() if f"{TENSORS}." in key}
        others = {key: value for key, value in state_dict.items() if key not in own}
        plan, text, seed = adapter.plan, adapter.spec_text, adapter.seed
        # Of one that is in the model already: what is drawn is there too.
        record = AdapterConfig(versions={}, spec=text, seed=seed, base=plan.base, plan=plan.digest)
        if config._unchecked:
            record = AdapterConfig.of(config.to_dict())
            check_names(_IN_MEMORY, plan, record)
            if digest_of(entries_of(own)) != record.tensors:
                reason = "it does not belong to the adapter_config.json beside it"
                raise AdapterError(codes.CHANGED_FILE(path=_IN_MEMORY, reason=reason))
            check_sharing(Path(CONFIG), plan, record)
        types = {key: "F32" if v.is_floating_point() else str(v.dtype) for key, v in own.items()}
        found = {attribute_in(k): {"shape": v.shape, "dtype": types[k]} for k, v in own.items()}
        wanted = expected(plan, record)
        if not config._unchecked:
            drawn = {attribute(t.name) for t in plan.tensors if t.drawn and not t.trainable}
            wanted = {name: t for name, t in wanted.items() if name in found or name not in drawn}
        raise_errors(AdapterError, list(tensor_problems(wanted, found)))
        names = names_of(plan, record)
        stored = {
            names[attribute_in(key)]: widen_tensor(tensor, record.rounded)
            for key, tensor in own.items()
        }
        _warn(*map(render, not_finite(stored)))
        values = complete(plan, record, stored)
        values |= check_remade(record.marks, adapter.parts.tensors())
        config._unchecked = False
        keys = adapter_keys(model, adapter)
        return others | {key: values[name] for key, name in keys.items() if name in values}


@contextmanager
def _in_words_of_peft(handle: Handle, safe_merge: bool) -> Iterator[None]:
    """Raise what PEFT raises of values that are not finite, where ``safe_merge`` asks for that check.

    Raises:
        ValueError: they are not; its cause is the error of bishare (BS628).
    """
    names = ", ".join(handle.active)
    try:
        yield
    except AdapterError as error:
        if safe_merge and error.problems[0].code == codes.NOT_FINITE.code:
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {names} seems to be broken"
            ) from error
        raise


_IN_MEMORY = Path(TENSORS_FILE)


def _planned(config: BishareConfig, model: nn.Module) -> ResolvedSpec:
    """Return the plan of a config for a model: of one that was saved, the plan that it was saved with."""
    if (stored := config.stored()) is None:
        return make_plan(str(config.spec), model, where=config._where)
    plan = check_plan(stored)
    problems = list(base_problems(plan, architecture_of(model)))
    raise_errors(AdapterError, problems)
    spec, where = read_spec(stored.spec)
    return ResolvedSpec(plan, tuple(problems), spec, where, changed=False)


def _handle_of(model: nn.Module) -> PeftHandle:
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return cast(PeftHandle, base.bishare)


def _warn(*texts: str) -> None:
    for text in texts:
        warnings.warn(text, BishareWarning, stacklevel=3)


def register() -> None:
    """Make bishare a method of PEFT, once."""
    if peft_type() not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(
            name=PEFT_TYPE.lower(), config_cls=BishareConfig, model_cls=BishareModel
        )
        save_and_load._get_adapter_state_dict_key_prefixes = _prefixes_beside(  # type: ignore[assignment]
            save_and_load._get_adapter_state_dict_key_prefixes
        )
        upload = _with_card(PeftModel._upload_modified_files)
        PeftModel._upload_modified_files = upload  # type: ignore[method-assign]


def _prefixes_beside(others: Callable[[Any], set[str]]) -> Callable[[Any], set[str]]:
    """Let PEFT tell the adapters' tensors from the base's: it looks for its own layers alone."""

    def prefixes(model: Any) -> set[str]:
        paths = (path for path, _ in model.base_model.model.named_modules())
        return others(model) | {path for path in paths if path.rpartition(".")[2] == TENSORS}

    return prefixes


def _with_card(upload: Callable[..., Any]) -> Callable[..., Any]:
    """Write the card of the adapter again: `push_to_hub` of transformers puts an empty one over it."""

    def uploads(model: PeftModel, working_dir: str, *args: Any, **kwargs: Any) -> Any:
        if isinstance(config := model.peft_config.get("default"), BishareConfig):
            config.write_card(working_dir)
        return upload(model, working_dir, *args, **kwargs)

    return uploads
