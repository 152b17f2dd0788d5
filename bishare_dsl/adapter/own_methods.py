"""Methods that an adapted model has in the place of its class's, where transformers has no hook.

transformers and its Trainer write all tensors that a model has, unless PEFT has put its own saving there: an
adapted model writes its adapter. And it refuses to resize a table of tokens at which an adapter has
something, for an adapter does not follow.

The name on the instance, and nothing of its class, leads through here. The functions are of this module and
know their model as an argument, so that copies and pickles of a model have their own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes.adapter import RESIZED
from bishare_dsl.models.hooks import HAS_ADAPTER, uploaded
from bishare_dsl.models.inspect import ADAPTER
from bishare_dsl.plan import Plan

if TYPE_CHECKING:
    from torch import nn

SAVING = "save_pretrained"
RESIZING = "resize_token_embeddings"


def put_methods(model: nn.Module, *names: str) -> None:
    """Put methods on a model whose class has such, but for those that somebody else looks after.

    Args:
        model: that is adapted.
        names: `SAVING` and `RESIZING`, or one of them.
    """
    for name in names:
        if hasattr(model, name):
            vars(model).setdefault(name, partial(_METHODS[name], model))
            if name == SAVING:
                vars(model).setdefault(HAS_ADAPTER, True)


def drop_methods(model: nn.Module) -> None:
    """Undo `put_methods`."""
    for name, function in _METHODS.items():
        kept = vars(model).get(name)
        if isinstance(kept, partial) and kept.func is function:
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
    """Write the adapter to a folder, and upload that as transformers does.

    What specifies how a base is written, such as ``max_shard_size``, does not matter to an adapter.
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
            if found := _at(adapter.plan, paths):
                raise AdapterError(RESIZED(path=found, name=name, rows=rows, wanted=wanted))
    return type(model).resize_token_embeddings(
        model, new_num_tokens, pad_to_multiple_of, mean_resizing
    )


def _at(plan: Plan, paths: set[str]) -> str | None:
    """Return one of some modules at which an adapter has a term or a parameter of its own."""
    used = {path for site in plan.sites if plan.terms_of[site.path] for path in site.paths}
    used |= {path.rpartition(".")[0] for trained in plan.trained for path in trained.paths}
    return next(iter(sorted(paths & used)), None)


_METHODS: dict[str, Callable[..., Any]] = {SAVING: _save, RESIZING: _resize}
