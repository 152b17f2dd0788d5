"""Folder checks in front of every PEFT and transformers method that loads or saves an adapter.

PEFT changes the model before it reads the adapter's file, and transformers does not compare the file's
tensors with anything. These wrappers read and check a bishare folder first, once, and hand on what they
read. `tests/peft/test_private.py` detects changed signatures.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from functools import wraps
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import hf_hub_download
from peft import PeftConfig, PeftModel

from bishare_dsl.compiler import make_plan, stored_values
from bishare_dsl.convert.peft_config import PREFIX
from bishare_dsl.diagnostics import AdapterError, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.folder.card import CARD
from bishare_dsl.folder.config import key_of
from bishare_dsl.folder.contents import StoredAdapter, base_problems
from bishare_dsl.folder.files import CONFIG, TENSORS, in_the_way, names_in, read_adapter
from bishare_dsl.folder.stored import tensor_of
from bishare_dsl.models import architecture_of
from bishare_dsl.peft.config import BishareConfig
from bishare_dsl.peft.whole import run_whole
from bishare_dsl.plan import Plan

_Function = Callable[..., Any]
_Tensors = dict[str, torch.Tensor]
StateCheck = Callable[..., tuple[Plan, _Tensors, _Tensors]]
"""Checks a model's state dict against a config; returns its plan, its tensors by name, and others by key."""


@dataclass(frozen=True)
class Read:
    """A folder that a load has read and checked: PEFT's calls inside of it get what was read.

    Attributes:
        stored: the contents of the folder.
        tensors: the adapter's, by name.
    """

    stored: StoredAdapter
    tensors: _Tensors

    def is_of(self, file: str | os.PathLike[str]) -> bool:
        """Tell whether a file is in the folder."""
        return Path(file).parent == self.stored.folder

    @property
    def config(self) -> PeftConfig:
        """PEFT's config of the adapter."""
        fields = BishareConfig.check_kwargs(**self.stored.config.fields)  # type: ignore[no-untyped-call]
        return cast(PeftConfig, BishareConfig.from_peft_type(**fields))  # type: ignore[no-untyped-call]

    @property
    def others(self) -> _Tensors:
        """The tensors of modules that PEFT has saved with the adapter, by key."""
        return {key: tensor_of(entry) for key, entry in self.stored.beside.items()}


READ: ContextVar[Read | None] = ContextVar("READ", default=None)
"""What the load that runs in this context has read."""


def check_first(load: _Function) -> _Function:
    """Wrap ``load`` of PEFT to check the folder first, and to change the model wholly or not at all."""
    signature = inspect.signature(load)

    @wraps(load)
    def checked(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        if READ.get() is not None:  # `from_pretrained` calls `load_adapter`.
            return load(*args, **kwargs)
        model: Any = arguments.get("model", args[0])
        name = arguments.get("adapter_name", "default")
        where = arguments.get("kwargs", {})
        config = arguments.get("config")
        if (read := _read_for(arguments["model_id"], where, model, name, config)) is None:
            return load(*args, **kwargs)

        def loaded() -> Any:
            READ.set(read)
            return load(*args, **kwargs)

        # What is read is gone with the context, wherever Ctrl-C ends the load.
        return run_whole(model, lambda: copy_context().run(loaded))

    return checked


def hand_on_config(read: _Function) -> _Function:
    """Wrap PEFT's reading of a config file: inside of a load it has been read already."""

    @wraps(read)
    def from_json_file(cls: Any, path_json_file: str, **kwargs: Any) -> Any:
        current = READ.get()
        if current is not None and current.is_of(path_json_file):
            return {**current.stored.config.fields}
        return read(cls, path_json_file, **kwargs)

    return from_json_file


def hand_on_tensors(read: _Function) -> _Function:
    """Wrap PEFT's reading of a tensor file: inside of a load, `BishareModel` has the adapter's tensors."""

    @wraps(read)
    def safe_load_file(filename: Any, device: Any = "cpu") -> Any:
        current = READ.get()
        if current is not None and current.is_of(filename):
            return {key: tensor.to(device) for key, tensor in current.others.items()}
        return read(filename, device=device)

    return safe_load_file


def copy_config(method: _Function) -> _Function:
    """Wrap ``method`` of PEFT, which adds a task's heads to the config it receives, to use a copy."""
    signature = inspect.signature(method)

    @wraps(method)
    def copied(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        model = bound.arguments.get("model", args[0])
        config = bound.arguments["peft_config"]
        of_model = any(config is known for known in getattr(model, "peft_config", {}).values())
        if isinstance(config, BishareConfig) and not of_model:
            bound.arguments["peft_config"] = config = config.copy()
            config.task_adds_heads = True
        return method(*bound.args, **bound.kwargs)

    return copied


def refuse_library(write: _Function) -> _Function:
    """Wrap ``write`` of PEFT, its first write to a folder, which would block on a pipe of that name.

    A library is refused, because its adapters would lose what they share.
    """

    @wraps(write)
    def written(model: Any, output_dir: Any) -> Any:
        card = Path(output_dir, CARD)
        if isinstance(model.active_peft_config, BishareConfig):
            if card.exists() and not card.is_file():
                raise in_the_way(card)
            names: tuple[str, ...] = ()
            with suppress(AdapterError):  # A config that a kill has cut is written again.
                names = names_in(output_dir)
            if names and "default" in model.peft_config:
                raise in_the_way(Path(output_dir, CONFIG))
        return write(model, output_dir)

    return written


def fill_after(load: _Function, check_state: StateCheck) -> _Function:
    """Wrap ``load`` of transformers so that the model receives the checked tensors."""
    signature = inspect.signature(load)

    @wraps(load)
    def filled(model: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(model, *args, **kwargs).arguments
        config = bound.get("peft_config")
        state = bound.get("adapter_state_dict")
        name = bound.get("adapter_name") or "default"
        settings = bound.get("load_config")
        named = getattr(settings, "pretrained_model_name_or_path", None)
        place = bound.get("peft_model_id") or named
        where = {**(getattr(settings, "download_kwargs", None) or {}), **bound.get("kwargs", {})}
        where |= bound.get("adapter_kwargs") or {}
        read = _read_for(place, where, model, name, config) if state is None and place else None
        if read is not None:
            config = config or read.config
            plan = read.stored.plan
            tensors = read.tensors
            others = read.others
        elif state is not None and isinstance(config, BishareConfig):
            plan, tensors, others = check_state(config, model, state)
            wrong = [key for key in others if not is_copied(key, config.modules_to_save)]
            raise_errors(AdapterError, [codes.UNEXPECTED_TENSOR(name=key) for key in wrong[:10]])
        else:
            return load(model, *args, **kwargs)
        state = {key_of(plan, tensor): value for tensor, value in tensors.items()} | others
        more = bound.pop("kwargs", {})
        bound |= {"peft_config": config, "adapter_state_dict": state, "peft_model_id": None}

        def load_and_fill() -> Any:
            result = load(**bound, **more)
            adapter = model.bishare[name]
            with torch.no_grad():
                for tensor, parameter in adapter.tensors().items():
                    if tensor in tensors:
                        parameter.copy_(tensors[tensor])
            adapter.config.mark_loaded()
            return result

        return run_whole(model, load_and_fill)

    return filled


def _read_for(
    place: Any, where: Mapping[str, Any], model: Any, name: str, config: PeftConfig | None
) -> Read | None:
    """Read and check an adapter for a model; return None for a folder of another method.

    Args:
        place: the folder, or the id of a repository on the Hub.
        where: PEFT's settings of the place, such as ``subfolder`` and ``revision``.
        model: the base, or PEFT's model of it.
        name: of the adapter; it may be in the model already.
        config: overrides the folder's config.

    Raises:
        AdapterError: the folder is damaged (BS601 to BS612, BS694, BS695), belongs to another base
            (BS613, BS699), or differs from the config or from the adapter in the model (BS696).
    """
    if (folder := _folder_of(place, where)) is None:
        return None
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    shapes = architecture_of(base)
    try:
        stored = read_adapter(folder, by_peft=True)
    except AdapterError as error:
        [problem, *_] = error.problems
        if problem.code in (codes.PEFT_ADAPTER.code, codes.NOT_AN_ADAPTER.code):
            return None
        if problem.code == codes.NEEDS_NAME.code:
            help = f'`bishare_dsl.load_adapter("{folder}#NAME", model)` loads one of them'
            raise AdapterError(replace(problem, help=help)) from None
        raise
    raise_errors(AdapterError, list(base_problems(stored.plan, shapes)))
    tables = tuple(f"{PREFIX}{path}" for path in tables_of(base)) if stored.config.beside else ()
    copied = stored.config.fields.get("modules_to_save")
    wrong = [k for k in stored.beside if not (is_copied(k, copied) or k.startswith(tables))]
    raise_errors(AdapterError, [codes.UNEXPECTED_TENSOR(name=key) for key in wrong[:10]])
    adapters = getattr(getattr(base, "bishare", None), "adapters", {})
    plans: dict[str, tuple[str, int]] = {}
    if name in adapters:
        held = adapters[name]
        plans[f"the adapter `{name}` in the model"] = held.saved_plan.digest, held.seed
    if isinstance(config, BishareConfig):
        record = config.loaded_record()
        digest = record.plan if record else make_plan(str(config.spec), base).plan.digest
        plans["the config that it is to be loaded with"] = digest, config.seed
    for what, (digest, seed) in plans.items():
        if digest != stored.plan.digest:
            raise AdapterError(codes.OTHER_CONFIG(folder=folder, what=what))
        if stored.config.ways("seed") and seed != stored.config.seed:
            raise AdapterError(codes.OTHER_SEED(found=stored.config.seed, seed=seed))
    tensors = stored_values(stored, base)
    return Read(stored, tensors)


def is_copied(path: str, modules: Iterable[str] | None) -> bool:
    """Tell whether a module, or one that it is in, is one that PEFT copies and trains: it compares ends."""
    within = accumulate(path.split("."), "{}.{}".format)
    return any(module.endswith(tuple(modules or ())) for module in within)


def tables_of(model: Any) -> tuple[str, ...]:
    """Return the key prefixes of a model's token tables: PEFT saves a resized one."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    getters = (getattr(base, f"get_{side}_embeddings", None) for side in ("input", "output"))
    tables = {id(table) for get in getters if get is not None and (table := get()) is not None}
    return tuple(f"{path}." for path, module in model.named_modules() if id(module) in tables)


def _folder_of(place: Any, where: Mapping[str, Any]) -> Path | None:
    """Return the folder of an adapter, downloaded from the Hub if needed; None without a tensor file."""
    folder = Path(place, where.get("subfolder") or "")
    if not (folder / CONFIG).exists():
        known = inspect.signature(hf_hub_download).parameters.keys()
        how = {name: where[name] for name in where.keys() & known}
        try:
            folder = Path(hf_hub_download(str(place), CONFIG, **how)).parent
            hf_hub_download(str(place), TENSORS, **how)
        except Exception:  # noqa: BLE001 - loading asks the Hub again, and reports the error
            return None
    if not (folder / TENSORS).exists() and (folder / "adapter_model.bin").exists():
        return None  # A pickled file: PEFT reads it, and `set_peft_model_state_dict` checks the result.
    return folder
