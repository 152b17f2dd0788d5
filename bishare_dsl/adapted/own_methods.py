"""Methods of an adapted model that replace its class's, because transformers has no hook for them.

Without PEFT's saving, transformers and its Trainer write all tensors of a model; an adapted model writes
its adapter instead. Resizing the token table is rejected if an adapter has a term there, because the
adapter cannot follow. Continuous batching is rejected for a mixed batch.

The override is set on the instance; the class is untouched. The functions are in this module and take the
model as an argument, so that copies and pickles of a model work.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes.adapter import MIXED_PLACES, RESIZED
from bishare_dsl.models.hooks import HAS_ADAPTER, uploaded
from bishare_dsl.models.site import ADAPTER
from bishare_dsl.plan import Plan
from bishare_dsl.rewrite.rewritten import own_parameters

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

SAVING = "save_pretrained"
RESIZING = "resize_token_embeddings"
TYING = "tie_weights"
BATCHING = "generate_batch"


def put_methods(model: nn.Module, *names: str) -> None:
    """Override methods that the model's class has, unless the instance already overrides them.

    Args:
        model: the adapted model.
        names: some of `SAVING`, `RESIZING`, `TYING` and `BATCHING`.
    """
    for name in names:
        if hasattr(model, name):
            vars(model).setdefault(name, partial(_METHODS[name], model))
            if name == SAVING:
                vars(model).setdefault(HAS_ADAPTER, True)


def drop_methods(model: nn.Module) -> None:
    """Undo `put_methods`."""
    for name, function in _METHODS.items():
        override = vars(model).get(name)
        if isinstance(override, partial) and override.func is function:
            del vars(model)[name]
            if name == SAVING:
                vars(model).pop(HAS_ADAPTER, None)


def _save(
    model: Any,
    save_directory: Any,
    is_main_process: bool = True,
    state_dict: Any = None,
    push_to_hub: bool = False,
    **settings: Any,
) -> None:
    """Write the adapter to a folder, and upload it as transformers does.

    Options for writing a base model, such as ``max_shard_size``, are ignored.
    """
    if is_main_process:
        with uploaded(model, save_directory, settings) if push_to_hub else nullcontext():
            model.bishare.save_pretrained(save_directory, state_dict=state_dict)


def _resize(
    model: Any,
    new_num_tokens: int | None = None,
    pad_to_multiple_of: int | None = None,
    mean_resizing: bool = True,
) -> Any:
    embedding = model.get_input_embeddings()
    rows = len(embedding.weight)
    wanted = rows if new_num_tokens is None else new_num_tokens
    if pad_to_multiple_of:
        wanted = -(-wanted // pad_to_multiple_of) * pad_to_multiple_of
    if wanted != rows:
        tables = (embedding, model.get_output_embeddings())
        paths = {path for path, module in model.named_modules() if any(module is t for t in tables)}
        for name, adapter in model.get_submodule(ADAPTER).adapters.items():
            if used_at := _at(adapter.plan, paths):
                raise AdapterError(RESIZED(path=used_at, name=name, rows=rows, wanted=wanted))
    return type(model).resize_token_embeddings(
        model, new_num_tokens, pad_to_multiple_of, mean_resizing
    )


def _tie(model: Any, *args: Any, **settings: Any) -> Any:
    """Tie the base's parameters: a tensor that replaces one that is trained in full is no parameter."""
    with own_parameters(module for module, _ in model.get_submodule(ADAPTER).parts.whole):
        return type(model).tie_weights(model, *args, **settings)


def _generate_batch(model: Any, *args: Any, adapter_names: Any = None, **kwargs: Any) -> Any:
    mixed = model.get_submodule(ADAPTER).has_open_batch
    if mixed or adapter_names is not None:
        # transformers would run the active adapter for each row.
        why = "continuous batching packs the requests of all rows, in another thread"
        help = "call `generate`, which runs mixed batches"
        raise AdapterError(MIXED_PLACES(path=BATCHING, why=why, help=help))
    return type(model).generate_batch(model, *args, **kwargs)


def _at(plan: Plan, paths: set[str]) -> str | None:
    """Return one of several modules at which an adapter has a term or trains a parameter in full."""
    used = {path for site in plan.sites if plan.terms_of[site.path] for path in site.paths}
    used |= {path.rpartition(".")[0] for trained in plan.trained for path in trained.paths}
    return next(iter(sorted(paths & used)), None)


_METHODS: dict[str, Callable[..., Any]] = {
    SAVING: _save,
    RESIZING: _resize,
    TYING: _tie,
    BATCHING: _generate_batch,
}
