"""Read the adapter of a folder or of the Hub, and check that it fits a model.

Warnings are returned to the caller, as in `bishare_dsl.compiler`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bishare_dsl.diagnostics import AdapterError, Problem, raise_errors
from bishare_dsl.models import Architecture, architecture_of

if TYPE_CHECKING:
    from torch import nn

    from bishare_dsl.folder.contents import StoredAdapter
    from bishare_dsl.models import Source


def read_fitting(
    folder: str | os.PathLike[str],
    model: nn.Module | Architecture | Source | str,
    named: nn.Module | Source | str | None = None,
) -> tuple[StoredAdapter, list[Problem]]:
    """Read an adapter or a LoRA of PEFT, check that it fits a model, and return its warnings.

    Hub ids are fetched. ``named`` is the model or its name if ``model`` is its shapes.

    Raises:
        BishareError: the adapter cannot be read or does not fit, or the model cannot be found.
    """
    from bishare_dsl.folder.contents import base_problems
    from bishare_dsl.folder.files import is_peft, read_adapter
    from bishare_dsl.hub import adapter_folder

    folder = adapter_folder(folder)
    base = architecture_of(model)
    try:
        stored = read_adapter(folder)
    except AdapterError:
        if not is_peft(folder):
            raise
        stored = read_lora(folder, model, named)
    problems = list(base_problems(stored.plan, base))
    raise_errors(AdapterError, problems)
    return stored, problems


def read_lora(
    folder: str | os.PathLike[str],
    model: nn.Module | Architecture | Source | str,
    named: nn.Module | Source | str | None = None,
) -> StoredAdapter:
    """Read a plain LoRA as an equal adapter. The arguments are those of `read_fitting`.

    Raises:
        BishareError: see `read_peft`; or the model cannot be found.
    """
    from bishare_dsl.convert.from_peft import read_peft
    from bishare_dsl.folder.contents import StoredAdapter
    from bishare_dsl.folder.stored import check_finite, entries_of, pack
    from bishare_dsl.language import spec_text

    base = _base_of(folder, model, named)
    spec, plan, tensors = read_peft(folder, architecture_of(model), base)
    check_finite(folder, tensors)
    packed = pack(plan, tensors, spec_text(spec), seed=0)
    return StoredAdapter(Path(folder), packed.config, plan, entries_of(packed.tensors))


def _base_of(
    folder: str | os.PathLike[str],
    model: nn.Module | Architecture | Source | str,
    named: nn.Module | Source | str | None,
) -> Callable[[], nn.Module] | None:
    """Return a function that returns the base of a LoRA, if it is known, and loads it at most once."""
    from bishare_dsl.convert.peft_config import read_config
    from bishare_dsl.models.load import load_model, meta_model
    from bishare_dsl.models.source import Source

    source = named if isinstance(model, Architecture) else model
    if source is None:
        return None
    if not isinstance(source, (str, Source)):
        return lambda: source
    # A DoRA is relative to the weights themselves.
    whole = read_config(Path(folder)).use_dora
    return cache(lambda: load_model(source, causal=False)[0] if whole else meta_model(source))
