"""Folder checks in front of every PEFT and transformers method that loads or saves an adapter.

PEFT changes the model before it reads the adapter's file, and transformers does not compare the file's
tensors with anything. These wrappers read and check a bishare folder first, so a rejected folder leaves
the model unchanged. `tests/peft/test_private.py` detects changed signatures.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from peft import PeftConfig, PeftModel
from torch import nn

from bishare_dsl.adapter.card import CARD
from bishare_dsl.adapter.config import key_of
from bishare_dsl.adapter.contents import StoredAdapter, base_problems
from bishare_dsl.adapter.files import (
    CONFIG,
    TENSORS,
    in_the_way,
    is_ours,
    names_in,
    read_adapter,
)
from bishare_dsl.adapter.initial import start_of_base
from bishare_dsl.adapter.reproduced import check_reproduced
from bishare_dsl.adapter.stored import tensor_of
from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import AdapterError, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.peft_config import PREFIX
from bishare_dsl.models import architecture_of
from bishare_dsl.peft.config import BishareConfig
from bishare_dsl.plan import Plan

_Tensors = dict[str, torch.Tensor]
StateCheck = Callable[
    [BishareConfig, nn.Module, Mapping[str, torch.Tensor]], tuple[Plan, _Tensors, _Tensors]
]
"""Checks a state dict against a config; returns the plan, its tensors by name, and the others by key."""


def checked(load: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``load`` of PEFT to check the folder first; `BishareModel` checks the tensors again."""
    signature = inspect.signature(load)

    @wraps(load)
    def checked(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        model: Any = arguments.get("model", args[0])
        name = arguments.get("adapter_name", "default")
        present = getattr(model, "peft_config", {}).get(name)
        if isinstance(present, BishareConfig) and present.stored() is not None:
            return load(
                *args, **kwargs
            )  # `from_pretrained` has checked the folder before it calls `load_adapter`.
        if (folder := _folder_of(arguments["model_id"], arguments.get("kwargs", {}))) is None:
            return load(*args, **kwargs)
        for last in (False, True):
            state = _state_of(folder)
            try:
                _read_for(folder, model, name, arguments.get("config"))
                return load(*args, **kwargs)
            except (
                Exception
            ):  # PEFT reads the files again, one by one; another process may write in between.
                if present is None:
                    _take_out(model, name)
                if last or _state_of(folder) == state:
                    raise
        raise AssertionError

    return checked


def _state_of(folder: Path) -> list[tuple[int, int, int] | None]:
    """Return file metadata that changes when an adapter is written."""
    stats = [
        path.stat() if (path := folder / name).exists() else None for name in (CONFIG, TENSORS)
    ]
    return [stat and (stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]


def _take_out(model: Any, name: str) -> None:
    """Remove from a model the adapter that PEFT added before reading its file."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    handle: Any = getattr(base, "bishare", None)
    if name in getattr(handle, "adapters", {}):
        if len(handle.adapters) > 1:
            handle.delete_adapter(name)
        else:
            handle.unload()


def on_a_copy(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``method`` of PEFT, which adds a task's heads to the config it receives, to use a copy."""
    signature = inspect.signature(method)

    @wraps(method)
    def copied(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        model, config = bound.arguments.get("model", args[0]), bound.arguments["peft_config"]
        of_model = any(config is known for known in getattr(model, "peft_config", {}).values())
        if isinstance(config, BishareConfig) and not of_model:
            bound.arguments["peft_config"] = config = config.own()
            config.task_adds_heads = True
        return method(*bound.args, **bound.kwargs)

    return copied


def if_free(write: Callable[..., Any]) -> Callable[..., Any]:
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


def filled(load: Callable[..., Any], check_state: StateCheck) -> Callable[..., Any]:
    """Wrap ``load`` of transformers so that the model receives the checked tensors."""
    signature = inspect.signature(load)

    @wraps(load)
    def filled(model: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(model, *args, **kwargs).arguments
        config, state = bound.get("peft_config"), bound.get("adapter_state_dict")
        name = bound.get("adapter_name") or "default"
        settings = bound.get("load_config")
        place = bound.get("peft_model_id") or getattr(
            settings, "pretrained_model_name_or_path", None
        )
        where = {**(getattr(settings, "download_kwargs", None) or {}), **bound.get("kwargs", {})}
        where |= bound.get("adapter_kwargs") or {}
        if state is None and place and (folder := _folder_of(place, where)) is not None:
            stored, tensors = _read_for(folder, model, name, config)
            config = config or PeftConfig.from_pretrained(str(folder))
            plan, others = stored.plan, {k: tensor_of(entry) for k, entry in stored.beside.items()}
        elif state is not None and isinstance(config, BishareConfig):
            plan, tensors, others = check_state(config, model, state)
            wrong = [key for key in others if not _is_saved(key, config)]
            raise_errors(AdapterError, [codes.UNEXPECTED_TENSOR(name=key) for key in wrong[:10]])
        else:
            return load(model, *args, **kwargs)
        state = {key_of(plan, tensor): value for tensor, value in tensors.items()} | others
        more = bound.pop("kwargs", {})
        bound |= {"peft_config": config, "adapter_state_dict": state, "peft_model_id": None}
        result = load(**bound, **more)
        adapter = model.bishare[name]
        with torch.no_grad():
            for tensor, parameter in adapter.tensors().items():
                if tensor in tensors:
                    parameter.copy_(tensors[tensor])
        adapter.config.settle()
        return result

    return filled


def _read_for(
    folder: Path, model: Any, name: str, config: PeftConfig | None
) -> tuple[StoredAdapter, dict[str, torch.Tensor]]:
    """Read the folder of an adapter for a model, and return its tensors by name.

    Args:
        folder: of an adapter of bishare.
        model: the base, or PEFT's model of it.
        name: of the adapter; it may be in the model already.
        config: overrides the folder's config.

    Raises:
        AdapterError: the folder is damaged (BS601 to BS612, BS694, BS695), belongs to another base
            (BS613, BS699), or differs from the config or from the adapter in the model (BS696).
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    shapes = architecture_of(base)
    try:
        stored = read_adapter(folder, by_peft=True)
    except AdapterError as error:
        if error.problems[0].code == codes.NEEDS_NAME.code:
            PeftConfig.from_pretrained(str(folder))  # Its error says how to load one adapter.
        raise
    raise_errors(AdapterError, list(base_problems(stored.plan, shapes)))
    if stored.beside:
        own = PeftConfig.from_pretrained(str(folder))
        tables = tuple(f"{PREFIX}{path}" for path in tables_of(base))
        others = [
            key
            for key in stored.beside
            if not _is_saved(key, own)
            # bishare 0.3 does not record the modules saved with an adapter.
            and not (stored.config.beside and key.startswith(tables))
        ]
        raise_errors(AdapterError, [codes.UNEXPECTED_TENSOR(name=key) for key in others[:10]])
    adapters = getattr(getattr(base, "bishare", None), "adapters", {})
    plans: dict[str, tuple[str, int]] = {}
    if name in adapters:
        plans[f"the adapter `{name}` in the model"] = (
            adapters[name].saved_plan.digest,
            adapters[name].seed,
        )
    if isinstance(config, BishareConfig):
        record = config.stored()
        digest = record.plan if record else make_plan(str(config.spec), base).plan.digest
        plans["the config that it is to be loaded with"] = digest, config.seed
    for what, (digest, seed) in plans.items():
        if digest != stored.plan.digest:
            raise AdapterError(codes.OTHER_CONFIG(folder=folder, what=what))
        if stored.config.drawn and seed != stored.config.seed:
            raise AdapterError(codes.OTHER_SEED(found=stored.config.seed, seed=seed))
    tensors = stored.tensors(with_base=True)
    if stored.config.marks:
        starts = start_of_base(stored.plan, base, stored.config.marks.keys())
        tensors |= check_reproduced(stored.config.marks, starts)
    return stored, tensors


def _is_saved(key: str, config: PeftConfig) -> bool:
    """Tell whether a tensor belongs to a module that PEFT trains and saves with an adapter."""
    return any(f".{name}." in key for name in getattr(config, "modules_to_save", None) or ())


def tables_of(model: Any) -> tuple[str, ...]:
    """Return the key prefixes of a model's token tables: PEFT saves a resized one."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    get = (getattr(base, f"get_{side}_embeddings", lambda: None) for side in ("input", "output"))
    tables = [table for table in (getter() for getter in get) if table is not None]
    return tuple(
        f"{path}." for path, module in model.named_modules() if any(module is t for t in tables)
    )


def _folder_of(place: Any, where: Mapping[str, Any]) -> Path | None:
    """Return the folder of a bishare adapter, downloaded from the Hub if needed; None for other methods."""
    folder = Path(place, where.get("subfolder") or "")
    if not (folder / CONFIG).exists():
        parameters = inspect.signature(hf_hub_download).parameters
        how = {name: value for name, value in where.items() if name in parameters}
        try:
            folder = Path(hf_hub_download(str(place), CONFIG, **how)).parent
            if is_ours(folder):
                hf_hub_download(str(place), TENSORS, **how)
        except Exception:  # noqa: BLE001 - loading asks the Hub again, and reports the error
            return None
    if not (folder / TENSORS).exists() and (folder / "adapter_model.bin").exists():
        return None  # A pickled file: PEFT reads it, and `set_peft_model_state_dict` checks the result.
    return folder if is_ours(folder) else None
