"""The PEFT tuner that `compile_spec`, `get_peft_model` and transformers use to add adapters to models.

Code that uses PEFT's private names is here, in `types` and in `adapter.handle`;
`tests/peft/test_private.py` detects changes. The adapters' state is in ``model.bishare``, a tuner layer
of PEFT, because `inject_adapter_in_model`, which transformers calls, keeps only the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import Any, cast

import torch
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper, set_additional_trainable_modules
from torch import nn

from bishare_dsl.adapted.adapter import adapter_keys, values_in
from bishare_dsl.adapted.handle import Handle, in_model
from bishare_dsl.adapted.own_methods import SAVING, put_methods
from bishare_dsl.compiler import (
    ResolvedSpec,
    make_plan,
    put_adapter,
    read_spec,
    values_of_base,
)
from bishare_dsl.convert.peft_config import PREFIX
from bishare_dsl.diagnostics import AdapterError, BishareWarning, ModelError, raise_errors, render
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.diagnostics.codes.plan import NO_SUCH_SITE
from bishare_dsl.diagnostics.codes.rewrite import ADAPTED_ALREADY
from bishare_dsl.folder.config import (
    FORMAT,
    FORMAT_0_4,
    AdapterConfig,
    Entry,
    attribute_in,
    is_seed,
)
from bishare_dsl.folder.contents import (
    StoredAdapter,
    base_problems,
    check_entries,
    check_plan,
    complete,
    digest_of,
)
from bishare_dsl.folder.files import TENSORS as TENSORS_FILE
from bishare_dsl.folder.stacks import groups_of
from bishare_dsl.folder.stored import entries_of, pack
from bishare_dsl.initial.values import draw_tensor
from bishare_dsl.models import architecture_of
from bishare_dsl.models.site import TENSORS
from bishare_dsl.peft.config import BishareConfig, ModulesToSave
from bishare_dsl.peft.doors import READ, is_copied, tables_of
from bishare_dsl.peft.whole import whole_method
from bishare_dsl.plan import Plan
from bishare_dsl.rewrite.adapt import DEFAULT


def install(
    model: nn.Module, source: ResolvedSpec | StoredAdapter, seed: int = 0, name: str | None = None
) -> tuple[str, ...]:
    """Add an adapter to a model as `get_peft_model` does or, with a name, next to existing adapters.

    The model object stays the same. Saving it writes the adapter, as transformers does for PEFT adapters.

    Args:
        model: must fit the plan.
        source: a plan with random initial values, or a saved adapter.
        seed: for random initial values.
        name: of the adapter; ``default`` for a single one.

    Returns:
        Notes on anything done differently from the request.

    Raises:
        BishareError: the model cannot take another adapter; nothing was changed.
        TypeError: the seed is not an integer.
    """
    if name is None and (isinstance(model, PeftModel) or in_model(model) is not None):
        raise ModelError(ADAPTED_ALREADY())
    if name is not None and name in getattr(in_model(model), "adapters", ()):
        raise AdapterError(codes.NAME_IN_USE(name=name))
    if isinstance(source, ResolvedSpec):
        text = source.text()
        seed = index(seed)
    else:
        text = source.spec_text
        seed = source.config.seed
    config = BishareConfig(seed=seed)
    # It was read already. A text of one line would be taken for a name.
    config.spec = text if "\n" in text else f"{text}\n"
    config.base_model_name_or_path = vars(model).get("name_or_path") or None
    notes = _put(model, source, config, name or DEFAULT)
    put_methods(model, SAVING)
    return notes


def check_arguments(call: str, first: object, model: object) -> None:
    """Check that the arguments of a call are in their order, and that the model is one.

    Raises:
        TypeError: they are not.
    """
    if isinstance(first, nn.Module | PeftConfig):
        is_model = isinstance(first, nn.Module)
        why = "the model is the second argument" if is_model else "docs/peft.md writes it as a spec"
        raise TypeError(f"{why}: `{call}`")
    if not isinstance(model, nn.Module):
        load = "load it first, as by `AutoModelForCausalLM.from_pretrained(name)`"
        raise TypeError(f"`{call}` changes a model in memory, and {model!r} is none: {load}")


def handle(model: nn.Module) -> Handle:
    """Return ``model.bishare`` with its type, which editors and type checkers know.

    Args:
        model: that `compile_spec` or `load_adapter` has adapted, or a `PeftModel` of it.

    Raises:
        AdapterError: the model has no adapter of bishare (BS627).
    """
    handle = in_model(model)
    if handle is None:
        raise AdapterError(codes.UNLOADED())
    return handle


def as_peft_model(model: nn.Module, task_type: str | None = None) -> PeftModel:
    """Return the `PeftModel` of a model with one running adapter.

    `get_peft_model` would add another adapter unless it receives the model's current config.
    """
    handle = cast(Handle, in_model(model))
    handle.running.config.task_type = task_type
    configs = vars(model).pop("peft_config")
    kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(task_type or "", PeftModel)
    peft_model = kind(model, configs[handle.name], handle.name)
    peft_model.peft_config.update(configs)
    return peft_model


def _put(
    model: nn.Module,
    source: ResolvedSpec | StoredAdapter,
    config: BishareConfig,
    name: str,
    unfilled: Collection[str] = (),
) -> tuple[str, ...]:
    """Compile an adapter into a model, and add the config that PEFT keeps for it.

    Args:
        model: must fit the plan.
        source: a resolved spec, or a saved adapter.
        config: of the adapter.
        name: of the adapter; it replaces one of this name.
        unfilled: names of tensors of a resolved spec to leave on the meta device, which the caller fills.
    """
    notes = list(put_adapter(model, source, config.seed, name, unfilled))
    if len(handle(model).adapters) == 1:
        notes += _unlike_ia3(source.plan, model)
    adapter = handle(model)[name]
    adapter.config = config
    vars(model).setdefault("peft_config", {})[name] = config
    if isinstance(source, StoredAdapter):
        record: AdapterConfig | None = source.config
        adapter.drawn = source.config.ways("seed")
    else:
        record = config.loaded_record()
    if record is not None:
        notes += map(render, handle(model).base_changes(record))
    return tuple(notes)


def _unlike_ia3(plan: Plan, model: nn.Module) -> Iterator[str]:
    """Say where `plain` is not PEFT's IA3: at a bias, as in each MLP without a gate that we know."""
    biased = []
    for term in plan.terms:
        is_plain = term.is_magnitude and term.options["plain"]
        if is_plain and getattr(model.get_submodule(term.site), "bias", None) is not None:
            biased.append(term.site)
    if biased:
        what = f"{len(biased)} modules with biases, such as `{biased[0]}`"
        yield f"`plain` is not PEFT's IA3 at {what}: it scales no bias, and PEFT scales what follows"


class BishareModel(BaseTuner):
    """The tuner of PEFT that puts compiled adapters into a model."""

    prefix = "bishare_"
    tuner_layer_cls = Handle
    target_module_mapping: dict[str, list[str]] = {}

    def __init__(
        self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        # transformers fills the tensors itself and passes only the config; `PeftModel` passes a
        # dict.
        if isinstance(peft_config, BishareConfig):
            peft_config = {adapter_name: peft_config}
        super().__init__(model, {**peft_config}, adapter_name, *args, **kwargs)

    @whole_method
    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Compile an adapter's spec into the model, next to any existing adapters.

        Raises:
            BishareError: the spec does not fit the model, or the model takes no other adapter; nothing
            was changed.
        """
        configs = cast("dict[str, BishareConfig]", self.peft_config)
        users_config = configs[adapter_name]
        handle = in_model(model)
        present = None if handle is None else handle.adapters.get(adapter_name)
        if present is not None and present.config is users_config:
            return  # From `as_peft_model`, or with the model's current config: wrap it only.
        config = users_config.copy()
        config.task_adds_heads = False
        configs[adapter_name] = config
        self._inject(model, adapter_name, config, low_cpu_mem_usage)
        if users_config.task_adds_heads:
            # PEFT reads these again, from the copy that `copy_config` passes to it.
            users_config.modules_to_save = config.modules_to_save

    def _inject(
        self, model: nn.Module, name: str, config: BishareConfig, low_cpu_mem_usage: bool
    ) -> None:
        resolved = _planned(config, model)
        self._check_copied(model, name, resolved.plan)
        _warn_of_unknown(config, model)
        unfilled = frozenset[str]()
        record = config.loaded_record()
        if low_cpu_mem_usage and record is not None:  # Tensors from a file need no initial values.
            unfilled = frozenset(resolved.plan.tensor).difference(record.ways("seed", "base"))
        notes = _put(model, resolved, config, name, unfilled)
        _warn(*(render(problem, resolved.where) for problem in resolved.problems), *notes)
        active = super().active_adapters  # Those that PEFT asks for.
        if name in active:
            handle(model).set_adapter(active, inference_mode=config.inference_mode)
        else:
            handle(model)[name].set_trainable(False)
        modules = ModulesToSave()
        modules.of_spec = _trained_names(resolved.plan)
        modules.extend(config.modules_to_save or ())
        config.modules_to_save = modules if modules or config.task_type else None
        set_additional_trainable_modules(
            model=model,
            peft_config=config,
            model_config=self.get_model_config(model),
            adapter_name=name,
            activate_adapter=name in active,
        )

    def _check_copied(self, model: nn.Module, name: str, plan: Plan) -> None:
        """Check that no adapter has a term in a module that PEFT copies and trains with an adapter.

        Raises:
            AdapterError: one has (BS665).
        """
        copied: list[str] = []
        for config in cast("dict[str, BishareConfig]", self.peft_config).values():
            copied += config.modules_to_save or ()
        plans = [plan]
        for other, adapter in getattr(in_model(model), "adapters", {}).items():
            if other != name:
                plans.append(adapter.plan)
        for each in plans:
            for site in each.sites:
                if is_copied(site.path, copied):
                    raise AdapterError(codes.TRAINED_TWICE(path=site.path))

    def _unload_and_optionally_merge(self, merge: bool = True, *_: Any, **settings: Any) -> Any:
        settings["progressbar"] = False
        if merge:
            safe_merge = settings.get("safe_merge", False)
            handle(self.model).merge_and_unload(safe_merge, settings.get("adapter_names"))
        else:
            handle(self.model).unload()
        return super()._unload_and_optionally_merge(merge, **settings)  # Modules that PEFT wraps.

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Answer that PEFT cannot convert an adapter of bishare: `Handle.export` does."""
        return False

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        """Put the module that PEFT has unwrapped in place of its wrapper; it has its weights already."""
        setattr(parent, child_name, new_module)

    def add_weighted_adapter(self, *_: Any, **__: Any) -> None:
        """Refuse a sum of adapters, which PEFT makes of LoRAs.

        Raises:
            AdapterError: always (BS669).
        """
        help = '`bishare convert` makes LoRAs: `combination_type="cat"` of PEFT adds these exactly'
        raise AdapterError(codes.LORA_ALONE(function="add_weighted_adapter", help=help))

    @whole_method
    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Switch as PEFT does, which would switch the modules that it trains itself before an error."""
        layer = handle(self.model)
        if layer.merged:
            warnings.warn(
                "Adapter cannot be set when the model is merged. Unmerging the model first.",
                stacklevel=2,
            )
            layer.unmerge()
        layer.set_adapter(adapter_name, inference_mode)
        self.active_adapter = adapter_name

    @property
    def active_adapters(self) -> list[str]:
        """The running adapters, whichever of PEFT's models or the handle switched to them."""
        layer = in_model(self.model)
        return super().active_adapters if layer is None else list(layer.active)

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        """Do nothing: `install` has frozen the base."""

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cast the tensors to the dtype of the base, unless they are to stay float32."""
        if autocast_adapter_dtype:
            return
        base = next(p for p in self.model.parameters() if p.is_floating_point())
        for parameter in self.model.bishare[adapter_name].parts.tensors().values():
            parameter.data = parameter.data.to(base.dtype)

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("bishare compiles a whole model")

    def _check_merge_allowed(self) -> None:
        """Check nothing here: `merge` checks each weight."""

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
        """Return an adapter's stored tensors by the model's keys, and record them in the config."""
        config = cast(BishareConfig, config)
        adapter = handle(model)[adapter_name]
        keys = adapter_keys(model, adapter)
        tensors = values_in(state_dict, model, adapter)
        last = config.last_record  # A loaded or saved adapter is saved again in the same way.
        has_frozen = any(t.drawn and not t.trainable for t in adapter.plan.tensors)
        stores_frozen = last is not None and has_frozen and not last.ways("seed")
        packed = pack(
            adapter.saved_plan,
            tensors,
            adapter.spec_text,
            seed=adapter.seed,
            origin=handle(model).origin(),
            frozen="tensors" if stores_frozen else "seed",
            dtype=last.rounded if last else None,
            exact=True,  # After training, it is saved with all bits.
        )
        digest = digest_of(entries_of(packed.tensors))
        config.last_record = packed.config.model_copy(update={"tensors": digest})
        _warn(*map(render, (*packed.warnings, *adapter.scale_problems())))
        prefix = "" if any(key.startswith(PREFIX) for key in keys) else PREFIX
        return {key.removeprefix(prefix): value for key, value in packed.tensors.items()}

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
        """Return an adapter's values by the model's keys, checked against its config.

        Raises:
            AdapterError: the values do not match (BS607, BS609 to BS612), or as `StoredAdapter.tensors`.
        """
        config = cast(BishareConfig, config)
        adapter = handle(model)[adapter_name]
        record = config.loaded_record() if config._unchecked else None
        read = READ.get()
        if read is not None:
            values = read.tensors
            others = state_dict
        else:
            plan = adapter.saved_plan
            seed = adapter.seed
            values, others = _check_state(plan, adapter.spec_text, seed, record, state_dict)
            _check_others(model, adapter_name, record, others)
            if record is not None:
                values |= values_of_base(record, plan, handle(model).model)
        config.mark_loaded()
        keys = adapter_keys(model, adapter)
        return others | {key: values[name] for key, name in keys.items() if name in values}


def _check_state(
    plan: Plan,
    spec_text: str,
    seed: int,
    record: AdapterConfig | None,
    state_dict: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return an adapter's checked tensors by name, and the other tensors of a state dict by key.

    Args:
        plan: the adapter's.
        spec_text: of its spec.
        seed: of the adapter.
        record: of a saved adapter; None for an adapter in a model.
        state_dict: with PEFT's keys.

    Raises:
        AdapterError: the tensors do not match the adapter (BS607 to BS612, BS694, BS695).
    """
    own = {key: value for key, value in state_dict.items() if f"{TENSORS}." in key}
    others = {key: value for key, value in state_dict.items() if key not in own}
    stored = {attribute_in(key): value for key, value in own.items()}
    entries = entries_of(own)
    config = record or _described(plan, spec_text, seed, stored)
    check_entries(_IN_MEMORY, plan, config, entries)
    if record and (len(entries) < len(own) or digest_of(entries) != record.tensors):
        reason = "its bytes differ from those that were saved, or it is of another save"
        raise AdapterError(codes.CHANGED_FILE(path=_IN_MEMORY, reason=reason))
    return complete(_IN_MEMORY, plan, config, stored), others


def _described(
    plan: Plan, spec_text: str, seed: int, stored: Mapping[str, torch.Tensor]
) -> AdapterConfig:
    """Return a config for tensors of a state dict or of a file that the caller has read.

    Raises:
        AdapterError: frozen tensors are missing, and no seed is there that gives them (BS609).
    """
    alone = groups_of(plan).keys().isdisjoint(stored)
    entries = {}
    for key, tensors in groups_of(plan, alone=alone).items():
        if key in stored:
            continue
        for tensor in tensors:
            if tensor.drawn and not tensor.trainable:
                entries[tensor.name] = Entry(way="seed")
    if entries and not any(map(is_seed, stored)):
        raise AdapterError(codes.MISSING_TENSOR(name=f"seed_{seed}"))
    return AdapterConfig(
        format=FORMAT_0_4 if alone else FORMAT,
        versions={},
        spec=spec_text,
        seed=seed,
        base=plan.base,
        plan=plan.digest,
        entries=entries,
    )


def _check_others(
    model: nn.Module, name: str, record: AdapterConfig | None, others: Mapping[str, torch.Tensor]
) -> None:
    """Check that extra tensors belong to modules trained by PEFT, or to the table of a grown vocabulary.

    Raises:
        AdapterError: they would replace weights of the base (BS610).
    """
    allowed: set[str] = set()
    for path, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            keys = module.adapter_state_dict_load_map(name).values()
            allowed.update(f"{path}.{key}" for key in keys)
    tables = tables_of(model) if record is not None and record.beside is not None else ()
    wrong = [key for key in others if key not in allowed and not key.startswith(tables)]
    raise_errors(AdapterError, [codes.UNEXPECTED_TENSOR(name=key) for key in wrong[:10]])


def check_new(
    config: BishareConfig, model: nn.Module, state_dict: Mapping[str, torch.Tensor]
) -> tuple[Plan, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the plan, the tensors and the extra tensors of the adapter that a config describes."""
    plan = _planned(config, model).plan
    record = config.loaded_record()
    tensors, others = _check_state(plan, str(config.spec), config.seed, record, state_dict)
    missing = [t for t in plan.tensors if t.drawn and t.name not in tensors]
    return plan, tensors | {t.name: draw_tensor(t, config.seed) for t in missing}, others


_IN_MEMORY = Path(TENSORS_FILE)


def _warn_of_unknown(config: BishareConfig, model: nn.Module) -> None:
    """Warn of a name of `modules_to_save` that no module of the model has."""
    if config._unchecked:
        return
    paths = [path for path, _ in model.named_modules()]
    for part in config.modules_to_save or ():
        if not any(path.endswith(part) for path in paths):
            help = "write the end of a path: `lm_head`; PEFT adds heads unless `task_type` is CAUSAL_LM"
            what = f"`{part}` of `modules_to_save`"
            problem = NO_SUCH_SITE(what=what, model=type(model).__name__)
            _warn(render(replace(problem, severity="warning", help=help), None))


def _trained_names(plan: Plan) -> frozenset[str]:
    """Return the parts of the paths of the modules that a plan trains in full."""
    names: set[str] = set()
    for trained in plan.trained:
        for path in trained.paths:
            names.update(path.split(".")[:-1])
    return frozenset(names)


def _planned(config: BishareConfig, model: nn.Module) -> ResolvedSpec:
    """Return a config's plan for a model; a saved adapter keeps the plan it was saved with."""
    stored = config.loaded_record()
    if stored is None:
        return make_plan(str(config.spec), model, where=config._where)
    plan, _ = check_plan(stored)
    problems = list(base_problems(plan, architecture_of(model)))
    raise_errors(AdapterError, problems)
    spec, where = read_spec(stored.spec)
    return ResolvedSpec(plan, tuple(problems), spec, where, changed=False)


def _warn(*texts: str) -> None:
    for text in texts:
        warnings.warn(text, BishareWarning, stacklevel=3)
