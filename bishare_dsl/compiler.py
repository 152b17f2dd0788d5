"""Plan specs and read adapters.

Warnings are returned to the caller: `api` emits them, and commands and training runs report them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bishare_dsl.diagnostics import AdapterError, BishareError, Problem, SourceMap, raise_errors
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.models import Architecture, architecture_of
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.resources import find_spec, shipped_specs
from bishare_dsl.spec import Params, Spec

if TYPE_CHECKING:
    from torch import nn

    from bishare_dsl.folder.contents import StoredAdapter
    from bishare_dsl.models import Source


def _drawing(plan: Plan) -> str:
    """Draw which modules share, for a notebook."""
    from bishare_dsl.show.svg import draw

    return draw(plan)


# Plans must not import pictures, which import plans.
Plan._repr_svg_ = _drawing  # type: ignore[attr-defined]


class ResolvedSpec(Record):
    """A spec resolved against a model, with its warnings.

    ``where`` has the locations of the spec's parts if it was read from a text. ``changed`` says whether
    params have other values than in the text.
    """

    plan: Plan
    problems: tuple[Problem, ...]
    spec: Spec
    where: SourceMap | None
    changed: bool

    def text(self) -> str:
        """Return a text for the spec that needs no other file, for the adapter's config.

        Raises:
            SpecError: no text can express the spec (BS140).
        """
        from bishare_dsl.language import own_text

        return own_text(self.spec, self.where, changed=self.changed)


def make_plan(
    spec: Spec | str | os.PathLike[str],
    model: nn.Module | Architecture | Source | str,
    params: Params | None = None,
    where: SourceMap | None = None,
) -> ResolvedSpec:
    """Resolve a spec against a model.

    Args:
        spec: a spec, the path of a file, the name of a shipped spec, or a text of several lines.
        model: a model, its shapes, or its name.
        params: values for params of the spec.
        where: the locations of a spec that was read already.

    Raises:
        BishareError: the spec is wrong or does not fit, or the model cannot be found. The error lists every
            problem with its position.
        FileNotFoundError: the spec does not exist.
        TypeError: the spec is a model.
    """
    from bishare_dsl.language.read import warn_of_outdented

    if model in [*shipped_specs()] or not isinstance(spec, (Spec, str, os.PathLike)):
        raise TypeError("the spec is the first argument, and the model the second one")
    if not isinstance(params, Mapping | None):
        raise TypeError(f"`params` is a dictionary such as `{{'r': 8}}`, and this is {params!r}")
    architecture = architecture_of(model)
    try:
        spec, read_where = read_spec(spec)
        where = where or read_where
        spec = spec.with_params(params or {})
        plan, problems = build_plan(spec, architecture)
    except BishareError as error:
        known = spec if isinstance(spec, Spec) else None
        raise advised(error, where, architecture, params, spec=known) from None
    warnings = [*warn_of_outdented(spec, where), *problems]
    if warnings:
        from bishare_dsl.advice import advise

        warnings = advise(warnings, where, architecture, params, spec=spec)
    return ResolvedSpec(plan, tuple(warnings), spec, where, bool(params))


def advised(
    error: BishareError,
    where: SourceMap | None,
    architecture: Architecture | None = None,
    params: Params | None = None,
    *,
    spec: Spec | None = None,
    allow_use: bool = False,
) -> BishareError:
    """Return an error of a spec with advice that was tried: see `bishare_dsl.advice`."""
    from bishare_dsl.advice import advise

    where = error.where or where
    problems = advise(error.problems, where, architecture, params, spec=spec, allow_use=allow_use)
    return type(error)(problems, where)


def parse_spec(text: str | bytes, name: str = "<text>", *, allow_use: bool = False) -> Spec:
    """Parse a text to a spec.

    Args:
        text: the text.
        name: its path, for messages; used files are searched in its folder.
        allow_use: whether it may use files outside of that folder.

    Raises:
        SpecError: every problem of the text and of used files (BS1xx), with its position.
    """
    from bishare_dsl.language import read

    if isinstance(text, os.PathLike) or f"{text!r}".endswith((".share'", '.share"')):
        raise TypeError(f"give a text, such as `parse_spec(Path({os.fspath(text)!r}).read_text())`")
    try:
        return read(text, name, allow_use=allow_use)[0]
    except BishareError as error:
        raise advised(error, None, allow_use=allow_use) from None


def read_spec(spec: Spec | str | os.PathLike[str]) -> tuple[Spec, SourceMap | None]:
    """Return a spec, and the locations of its parts if it was read from a text.

    Args:
        spec: a spec, a text of several lines, the path of a file, or the name of a shipped spec.

    Raises:
        SpecError: the text is not a spec. The error lists every problem with its position.
        FileNotFoundError: the spec does not exist.
    """
    from bishare_dsl.language import read, read_file

    if isinstance(spec, Spec):
        return spec, None
    if isinstance(spec, str) and "\n" in spec:
        return read(spec)
    return read_file(find_spec(os.fspath(spec)))


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
