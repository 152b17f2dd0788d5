"""What an adapted model says when its tables of tokens are resized, for an adapter does not follow.

transformers has no hook for it: the name on the instance, and nothing of its class, leads through here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes.adapter import RESIZED
from bishare_dsl.models.inspect import ADAPTER
from bishare_dsl.plan import Plan

if TYPE_CHECKING:
    from torch import nn

_NAME = "resize_token_embeddings"


def guard_resizing(model: nn.Module) -> None:
    """Let a model refuse to resize a table of tokens at which an adapter has something."""
    if hasattr(model, _NAME):
        vars(model).setdefault(_NAME, partial(_resize, model))


def forget_resizing(model: nn.Module) -> None:
    """Undo `guard_resizing`."""
    kept = vars(model).get(_NAME)
    if isinstance(kept, partial) and kept.func is _resize:
        del vars(model)[_NAME]


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
        for name, plan in model.get_submodule(ADAPTER).plans().items():
            if found := _at(plan, paths):
                raise AdapterError(RESIZED(path=found, name=name, rows=rows, wanted=wanted))
    return type(model).resize_token_embeddings(
        model, new_num_tokens, pad_to_multiple_of, mean_resizing
    )


def _at(plan: Plan, paths: set[str]) -> str | None:
    """Return one of some modules at which an adapter has a term or a parameter of its own."""
    used = {path for site in plan.sites if plan.terms_of[site.path] for path in site.paths}
    used |= {path.rpartition(".")[0] for trained in plan.trained for path in trained.paths}
    return next(iter(sorted(paths & used)), None)
