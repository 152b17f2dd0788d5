"""What an adapted model says when it is saved whole: its own `save_pretrained` writes base and adapter.

transformers has no public hook for that: those of `state_dict` fire at any other use of it, too. So the name
on the instance, and nothing of its class, leads through here. The function is of this module and knows its
model as an argument, so that copies and pickles of a model have their own.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import BishareWarning, render
from bishare_dsl.diagnostics.codes.adapter import SAVED_WHOLE

if TYPE_CHECKING:
    from torch import nn

_NAME = "save_pretrained"


def warn_of_saving(model: nn.Module) -> None:
    """Let a model warn when it is saved whole, unless somebody else looks after its saving."""
    if hasattr(model, _NAME):
        vars(model).setdefault(_NAME, partial(_save, model))


def forget_saving(model: nn.Module) -> None:
    """Undo `warn_of_saving`."""
    kept = vars(model).get(_NAME)
    if isinstance(kept, partial) and kept.func is _save:
        del vars(model)[_NAME]


def _save(model: Any, save_directory: Any, is_main_process: bool = True, **settings: Any) -> None:
    if (
        is_main_process
    ):  # Of several processes one tells. It names no folder: Python shows it once so.
        warnings.warn(render(SAVED_WHOLE()), BishareWarning, stacklevel=2)
    type(model).save_pretrained(model, save_directory, is_main_process=is_main_process, **settings)
