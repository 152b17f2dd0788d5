"""Plan specs and read adapters.

Warnings are returned to the caller: `api` emits them, and commands and training runs report them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import (
    AdapterError,
    BishareError,
    Problem,
    SourceMap,
    raise_errors,
)
from bishare_dsl.diagnostics.codes import registry
from bishare_dsl.diagnostics.codes.adapter import CHANGED_FILE
from bishare_dsl.models import Architecture, architecture_of
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.plan.check import check_spec
from bishare_dsl.resources import find_spec
from bishare_dsl.spec import Spec

if TYPE_CHECKING:
    from torch import nn

    from bishare_dsl.adapter.contents import StoredAdapter
    from bishare_dsl.models import Source


def _frame(plan: Plan) -> str:
    """Draw which modules share, for a notebook."""
    from bishare_dsl.show.page import frame

    return frame(plan)


# Plans must not import pictures, which import plans.
Plan._repr_html_ = _frame  # type: ignore[attr-defined]

Params = Mapping[str, int | float | str]
"""Values for a spec's params."""


@dataclass(frozen=True)
class ResolvedSpec:
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
    """
    from bishare_dsl.language.read import warn_of_outdented

    spec, read_where = read_spec(spec)
    where = where or read_where
    architecture = architecture_of(model)
    try:
        spec = spec.with_params(params or {})
        plan, problems = build_plan(spec, architecture)
    except BishareError as error:
        said = drop_failing_advice(error.problems, where, architecture)
        raise type(error)(said, where) from None
    return ResolvedSpec(
        plan, (*warn_of_outdented(spec, where), *problems), spec, where, bool(params)
    )


# Trying a piece of advice means planning the spec again.
_TRIED = 10
_ADVICE = re.compile(r"did you mean `([^`]+)`\?|^`rank ([^`]+)`")


def drop_failing_advice(
    problems: Iterable[Problem], where: SourceMap | None, architecture: Architecture | None
) -> Iterator[Problem]:
    """Yield problems, without advice that fails when it is followed.

    The advised text replaces the wrong text, and the spec is checked again, with or without a model.
    This is done for the first few problems; the others lose their advice. Problems of used files are not
    changed.
    """
    tried = 0
    for problem in problems:
        meant = _ADVICE.match(problem.help or "")
        span = where.locate(problem.loc) if where and problem.loc and meant else None
        if meant and span and where and where.source_of(span) is where.source:
            text = where.source.text
            text = text[: span.start] + (meant[1] or meant[2]) + text[span.end :]
            tried += 1
            failing = tried > _TRIED
            if not failing:
                again = _problems(text, where.source.name, architecture)
                locations = [one.loc for one in again if one.severity == "error"]
                failing = any(loc[: len(problem.loc)] == problem.loc for loc in locations)
            if failing:
                problem = replace(problem, help=registry()[problem.code].remedy)
        yield problem


def _problems(text: str, name: str, architecture: Architecture | None) -> Sequence[Problem]:
    from bishare_dsl.language import read

    try:
        spec, _ = read(text, name)
        return check_spec(spec) if architecture is None else build_plan(spec, architecture)[1]
    except BishareError as error:
        return error.problems


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
    from bishare_dsl.adapter.contents import base_problems
    from bishare_dsl.adapter.files import is_peft, read_adapter
    from bishare_dsl.export.peft_config import layout_of
    from bishare_dsl.hub import adapter_folder

    folder = adapter_folder(folder)
    plain = is_peft(folder) or layout_of(folder) == "gguf"
    base = architecture_of(model)
    stored = read_lora(folder, model, named) if plain else read_adapter(folder)
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
    from bishare_dsl.adapter.contents import StoredAdapter
    from bishare_dsl.adapter.files import pack
    from bishare_dsl.adapter.stored import check_finite, entries_of
    from bishare_dsl.export.from_peft import read_peft
    from bishare_dsl.language import spec_text

    base = _base_of(folder, model, named)
    spec, plan, tensors = read_peft(folder, architecture_of(model), base)
    check_finite(folder, tensors)
    values, config, _ = pack(plan, tensors, spec_text(spec), seed=0)
    return StoredAdapter(Path(folder), config, plan, entries_of(values))


def _base_of(
    folder: str | os.PathLike[str],
    model: nn.Module | Architecture | Source | str,
    named: nn.Module | Source | str | None,
) -> Callable[[], nn.Module] | None:
    """Return a function that returns the base of a LoRA, if it is known, and loads it at most once."""
    from bishare_dsl.export.peft_config import layout_of, read_config
    from bishare_dsl.models.load import load_model, meta_model
    from bishare_dsl.models.source import Source

    source = named if isinstance(model, Architecture) else model
    if source is None:
        return None
    if not isinstance(source, (str, Source)):
        return lambda: source
    # A DoRA is relative to the weights themselves.
    whole = layout_of(folder) == "peft" and read_config(Path(folder)).use_dora
    return cache(lambda: load_model(source, causal=False)[0] if whole else meta_model(source))


def save_again(
    stored: StoredAdapter,
    out: str | os.PathLike[str],
    dtype: str = "float32",
) -> tuple[Problem, ...]:
    """Save an adapter in another folder, after comparing what will be read from it.

    Args:
        stored: the adapter.
        out: the folder; unchanged if a comparison fails.
        dtype: of the file; only tensors in float32 are compared.

    Returns:
        The warnings of `save_adapter`.

    Raises:
        BishareError: see `save_adapter`; or a tensor differs (BS607).
    """
    from bishare_dsl.adapter.files import save_adapter

    tensors, config = stored.tensors(), stored.config

    def compare(saved: StoredAdapter) -> None:
        again = saved.tensors()
        for name in tensors if dtype == "float32" else ():
            if not again[name].equal(tensors[name]):
                reason = (
                    f"its tensors differ from those of `{stored.folder}`, the first is `{name}`"
                )
                raise AdapterError(CHANGED_FILE(path=out, reason=reason))

    how: Any = {"seed": config.seed, "base_revision": config.base_revision, "dtype": dtype}
    how |= {"auto_mapping": config.auto_mapping}
    return save_adapter(out, stored.plan, tensors, stored.spec_text, check=compare, **how)
