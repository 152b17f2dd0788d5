"""From a spec to its plan, and from a plan into a model. Nothing here speaks.

What is worth a warning is given back: `api` warns of it, commands and training runs report it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

from bishare_dsl.diagnostics import (
    AdapterError,
    BishareError,
    Problem,
    SourceMap,
    raise_errors,
    render,
)
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models import Architecture, architecture_of
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.resources import find_spec
from bishare_dsl.spec import Spec

if TYPE_CHECKING:
    from torch import nn

    from bishare_dsl.adapter.files import StoredAdapter
    from bishare_dsl.models import Source

DEFAULT = "default"
"""The name of an adapter that was given none, as in PEFT."""

Params = Mapping[str, int | float | str]
"""Other values for a spec's params."""


@dataclass(frozen=True)
class Planned:
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
) -> Planned:
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
    from bishare_dsl.language import read, read_file
    from bishare_dsl.language.read import find_doubts

    if isinstance(spec, str) and "\n" in spec:
        spec, where = read(spec)
    elif not isinstance(spec, Spec):
        spec, where = read_file(find_spec(os.fspath(spec)))
    architecture = architecture_of(model)
    try:
        spec = spec.with_params(params or {})
        plan, problems = build_plan(spec, architecture)
    except BishareError as error:
        raise error.at(where) from None
    return Planned(plan, (*find_doubts(spec, where), *problems), spec, where, bool(params))


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
    from bishare_dsl.adapter.files import base_problems, is_peft, read_adapter
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
    from bishare_dsl.export.from_peft import read_peft
    from bishare_dsl.language import spec_text
    from bishare_dsl.models.load import meta_model
    from bishare_dsl.models.source import Source

    source = named if isinstance(model, Architecture) else model
    live = None
    if source is not None:
        live = partial(meta_model, source) if isinstance(source, (str, Source)) else lambda: source
    spec, plan, tensors = read_peft(folder, architecture_of(model), live)
    text = spec_text(spec)
    for problem in save_adapter(out, plan, tensors, text, seed=0):
        if tell is not None:
            tell(problem)
    return text


def install(
    model: nn.Module, made: Planned | StoredAdapter, seed: int = 0, name: str | None = None
) -> tuple[str, ...]:
    """Put an adapter into a model, or, under a name, beside the one that is in it.

    Args:
        model: that it fits.
        made: a plan, whose tensors are drawn, or an adapter that was saved.
        seed: of the tensors that are drawn.
        name: of the adapter; `DEFAULT` for one alone.

    Returns:
        What is done in another way than asked, to be told.

    Raises:
        BishareError: the model takes no other adapter; nothing was changed.
    """
    from bishare_dsl.adapter.devices import devices
    from bishare_dsl.adapter.initial import copy_base, draw
    from bishare_dsl.adapter.singular import singular_starts
    from bishare_dsl.rewrite.adapt import adapt
    from bishare_dsl.serve.transformers.handle import AdapterHandle

    if name == "":
        raise AdapterError(codes.NO_NAME())
    plan, where = made.plan, devices(made.plan, model)
    told: list[Problem] = []
    if isinstance(made, Planned):
        text, compact = made.text(), False
        on_meta = all(device.type == "meta" for device in where.values())
        tensors = draw(plan, seed, "meta" if on_meta else "cpu")
    else:
        text, seed, compact = made.spec_text, made.config.seed, made.compact
        tensors = made.tensors(tell=told.append)
    # What is not stored yet, and no seed draws, starts as the base says.
    if missing := plan.tensor.keys() - tensors.keys():
        base = copy_base(plan, model)
        if any(plan.tensor[name].init != "base" for name in missing):
            base |= singular_starts(plan, model)
        tensors = {**tensors, **{name: base[name] for name in missing}}
    worth_knowing = list(map(render, told))
    tensors = {n: t.to(where[n]) for n, t in tensors.items()}
    beside = getattr(model, "bishare", None)
    if name is not None and isinstance(beside, AdapterHandle):
        return (*beside.add(name, plan, tensors, text, seed, compact), *worth_knowing)
    if compact and model.training:
        raise AdapterError(codes.COMPACT_FOR_GOOD())
    notes = adapt(model, plan, tensors, root=AdapterHandle)
    handle = cast("AdapterHandle", model.bishare)
    handle.bind(model, plan, text, seed, DEFAULT if name is None else name)
    if compact:
        handle.freeze_compact()
    return (*notes, *worth_knowing)


def install_all(
    model: nn.Module,
    folder: str | os.PathLike[str],
    watch: Callable[[list[Path]], Iterable[Path]] = iter,
) -> tuple[str, ...]:
    """Put each adapter of a folder of adapters, or of a library, into a model, or beside those in it.

    An adapter is called as its folder, or as in the library.

    Args:
        watch: gives the folders of the adapters one after the other, when the last one is loaded.

    Returns:
        What to warn of, as `read_fitting` and `install` find it.

    Raises:
        BishareError: there is none (BS675), or as `read_fitting` and `install` do; nothing was changed.
    """
    from bishare_dsl.adapter.files import CONFIG, names_in, place_of
    from bishare_dsl.hub import adapter_folder
    from bishare_dsl.serve.transformers.handle import AdapterHandle

    folder = adapter_folder(folder)
    paths = [Path(f"{os.fspath(folder)}#{name}") for name in names_in(folder)]
    paths = paths or sorted(path.parent for path in Path(folder).glob(f"*/{CONFIG}"))
    if not paths:
        raise AdapterError(codes.NO_ADAPTERS(folder=folder))
    architecture = architecture_of(model)
    is_first = not isinstance(getattr(model, "bishare", None), AdapterHandle)
    texts: dict[str, None] = {}
    loaded: list[str] = []
    try:
        for path in watch(paths):
            stored, problems = read_fitting(path, architecture)
            name = place_of(path)[1] or path.name
            notes = install(model, stored, name=name)
            loaded.append(name)
            texts.update(dict.fromkeys((*map(render, problems), *notes)))
    except BaseException:
        handle = cast("AdapterHandle", getattr(model, "bishare", None))
        if is_first and loaded:
            handle.unload()
        elif not is_first:
            for name in loaded:
                handle.delete_adapter(name)
        raise
    return tuple(texts)
