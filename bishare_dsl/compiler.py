"""From a spec to its plan, and from a folder to the adapter in it.

Emits no warnings; returns them to the caller: `api` warns, commands and training runs report.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bishare_dsl.diagnostics import (
    AdapterError,
    BishareError,
    Problem,
    SourceMap,
    raise_errors,
)
from bishare_dsl.diagnostics.codes import registry
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
    """Draw who shares what with whom, in a notebook."""
    from bishare_dsl.show.page import frame

    return frame(plan)


# Pictures are made of plans, which therefore do not know them.
Plan._repr_html_ = _frame  # type: ignore[attr-defined]

Params = Mapping[str, int | float | str]
"""Other values for a spec's params."""


@dataclass(frozen=True)
class ResolvedSpec:
    """A spec resolved against a model, and what to warn of.

    ``where`` tells the places of the spec's parts, if it was read from a text; ``changed`` whether its
    params have other values than there.
    """

    plan: Plan
    problems: tuple[Problem, ...]
    spec: Spec
    where: SourceMap | None
    changed: bool

    def text(self) -> str:
        """Return a text that means the spec without any other file: what an adapter keeps.

        Raises:
            SpecError: no text says the spec (BS140).
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
        spec: a spec, the path of a file, a shipped spec's name, or a text, which has several lines.
        model: a model, its shapes, or what names it.
        params: values to use instead of those in the spec.
        where: the places of a spec that was read already.

    Raises:
        BishareError: the spec is wrong or does not fit, or the model cannot be found; every problem,
            each at its place in the text.
        FileNotFoundError: there is no such spec.
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


# For each piece of advice that is tried a spec is planned again.
_TRIED = 10
_ADVICE = re.compile(r"did you mean `([^`]+)`\?|^`rank ([^`]+)`")


def drop_failing_advice(
    problems: Iterable[Problem], where: SourceMap | None, architecture: Architecture | None
) -> Iterator[Problem]:
    """Yield problems without the advice that fails when it is followed.

    What the advice names replaces what is wrong in the text, which is checked again: with a model or without.
    So is the advice of the first few problems; that of others is left out. A problem of a used file stays as
    it is.
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
                said = [one.loc for one in again if one.severity == "error"]
                failing = any(loc[: len(problem.loc)] == problem.loc for loc in said)
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
    """Return a spec, and where its parts stand in a text, if it was read from one.

    Args:
        spec: a spec, its text, which has several lines, the path of a file, or a shipped spec's name.

    Raises:
        SpecError: the text is not a spec; every problem, each at its place.
        FileNotFoundError: there is no such spec.
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
    named: Source | str | None = None,
) -> tuple[StoredAdapter, list[Problem]]:
    """Read an adapter that fits a model, bishare's or a LoRA of PEFT, and find what to warn of.

    One that the Hub has is fetched. ``named`` is what names the model, where ``model`` is its shapes.

    Raises:
        BishareError: it cannot be read or does not fit, or the model cannot be found.
    """
    from bishare_dsl.adapter.contents import base_problems
    from bishare_dsl.adapter.files import is_peft, read_adapter
    from bishare_dsl.hub import adapter_folder

    folder = adapter_folder(folder)
    if is_peft(folder):
        with TemporaryDirectory() as scratch:
            import_peft(folder, model, scratch, named)
            stored = replace(read_adapter(scratch), folder=Path(folder))
    else:
        stored = read_adapter(folder)
    problems = list(base_problems(stored.plan, architecture_of(model)))
    raise_errors(AdapterError, problems)
    return stored, problems


def import_peft(
    folder: str | os.PathLike[str],
    model: nn.Module | Architecture | Source | str,
    out: str | os.PathLike[str],
    named: Source | str | None = None,
    tell: Callable[[Problem], None] | None = None,
) -> str:
    """Write an adapter that adds to each module what a LoRA of PEFT adds; give the text of its spec.

    Arguments as in `read_fitting`; ``tell`` takes what `save_adapter` warns of.

    Raises:
        BishareError: as `read_peft` and `save_adapter` do, or the model cannot be found.
    """
    from bishare_dsl.adapter.files import save_adapter
    from bishare_dsl.adapter.stored import check_finite
    from bishare_dsl.export.from_peft import read_peft
    from bishare_dsl.export.peft_config import read_config
    from bishare_dsl.language import spec_text
    from bishare_dsl.models.load import load_model, meta_model
    from bishare_dsl.models.source import Source

    source = named if isinstance(model, Architecture) else model
    live = None
    if source is not None:
        # A DoRA is relative to the weights themselves.
        whole = read_config(Path(folder)).use_dora
        load = partial(load_model, causal=False) if whole else lambda named: (meta_model(named),)
        live = (lambda: load(source)[0]) if isinstance(source, (str, Source)) else lambda: source
    spec, plan, tensors = read_peft(folder, architecture_of(model), live)
    check_finite(folder, tensors)
    text = spec_text(spec)
    for problem in save_adapter(out, plan, tensors, text, seed=0):
        if tell is not None:
            tell(problem)
    return text
