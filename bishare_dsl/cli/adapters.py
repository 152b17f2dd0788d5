"""Adapters of a command line: read before the base is loaded, then put into it one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bishare_dsl.cli.reading import is_adapter, plan_of, read_adapter_for
from bishare_dsl.cli.report import CommandError, Report, silence_libraries
from bishare_dsl.diagnostics import BishareError, EvaluateError
from bishare_dsl.diagnostics.codes import evaluate as codes
from bishare_dsl.diagnostics.codes.usage import WRONG_USAGE
from bishare_dsl.language.read import read
from bishare_dsl.reading import real_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bishare_dsl.compiler import ResolvedSpec
    from bishare_dsl.folder.contents import StoredAdapter
    from bishare_dsl.models import Architecture
    from bishare_dsl.spec import Params

BASE = "base"


def adapters_in(folder: Path) -> list[Path]:
    """Return the adapter that a word names, or all of those in a folder or in a library."""
    from bishare_dsl.cli.files import find_adapters
    from bishare_dsl.folder.files import names_in

    adapters: list[Path] = []
    for place in find_adapters(folder) or [folder]:
        names: tuple[str, ...] = ()
        with suppress(BishareError):  # Reading the adapter raises it.
            names = names_in(place)
        adapters += [Path(f"{place}#{name}") for name in names] or [place]
    return adapters


def bytes_of(place: Path) -> int:
    """Return the bytes of an adapter's files, or of a library's with all its adapters."""
    from bishare_dsl.folder.inventory import list_adapters

    if place.is_file():
        return place.stat().st_size
    return sum(entry.bytes for entry in list_adapters(place))


def named_folders(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the adapters by their names: those of their folders, or that they have in a library.

    Raises:
        CommandError: one has the name of another, or one that cannot be that of a file.
    """
    from bishare_dsl.folder.files import check_members, place_of

    named: dict[str, Path] = {}
    for folder in folders:
        place, member = place_of(folder)
        name = member or real_path(place).name
        if name in named:
            what = f"`{named[name]}` and `{folder}` have one name, that of their folders"
            raise CommandError(WRONG_USAGE(what=what))
        if len(folders) > 1:
            check_members([name])
        named[name] = folder
    return named


def read_named(
    folder: Path, model: str | None, report: Report
) -> tuple[StoredAdapter, Architecture, str]:
    """Read an adapter, and return it with the shapes and the name of its base.

    The base is ``model``, or else the model that the adapter names. Damage is found before torch is loaded.

    Raises:
        BishareError: the adapter cannot be read, names no base, or does not fit.
    """
    from bishare_dsl.convert.peft_config import check_files
    from bishare_dsl.folder.files import is_peft, read_adapter
    from bishare_dsl.hub import adapter_folder

    folder = adapter_folder(folder)
    if folder.suffix == ".gguf":
        what = "GGUF files are only written: convert the folder that this one was made from"
        raise CommandError(WRONG_USAGE(what=what))
    if is_peft(folder):
        check_files(folder)
    elif model is None:
        stored = read_adapter(folder)
        base = stored.plan.base
        return stored, base, stored.config.base_model or base.name
    name = base_name(folder, model)
    return read_adapter_for(folder, shapes_of(name), report, name), shapes_of(name), name


def shapes_of(model: str) -> Architecture:
    """Return the shapes of a model, which a command reads once for many adapters."""
    from bishare_dsl.models import architecture_of

    cached = click.get_current_context().meta
    if model not in cached:
        cached[model] = architecture_of(model)
    architecture: Architecture = cached[model]
    return architecture


def plan_of_any(name: str, model: str | None, params: Params, report: Report) -> ResolvedSpec:
    """Return the plan of a spec for a model, or of an adapter for its base. Warnings go to the report."""
    from bishare_dsl.compiler import ResolvedSpec

    if params or not is_adapter(name):
        return plan_of(name, model, params, report)
    stored, _, _ = read_named(Path(name), model, report)
    spec = read(stored.spec_text, name)[0]
    return ResolvedSpec(stored.plan, (), spec, None, changed=False)


def base_name(folder: Path, model: str | None) -> str:
    """Return ``model``, or else the name of the base in the config of an adapter.

    Raises:
        CommandError: neither the adapter nor the command line names one (BS901).
    """
    from bishare_dsl.convert.peft_config import read_config
    from bishare_dsl.folder.files import place_of

    name = model or read_config(place_of(folder)[0]).base_model_name_or_path
    if name is None:
        raise CommandError(WRONG_USAGE(what="the adapter names no base: give --model"))
    return name


def read_adapters(folders: Iterable[Path], model: str, report: Report) -> dict[str, StoredAdapter]:
    """Read adapters of a model; a library stands for all its adapters.

    The keys are the names of their folders, or whole paths if names repeat or one is `BASE`.

    Raises:
        BishareError: an adapter cannot be read or does not fit, or the model cannot be found.
    """
    silence_libraries()
    architecture = shapes_of(model)
    names = {one: real_path(one).name for folder in folders for one in adapters_in(folder)}
    labels = {f: n if [BASE, *names.values()].count(n) == 1 else str(f) for f, n in names.items()}
    return {name: read_adapter_for(f, architecture, report, model) for f, name in labels.items()}


def load_base(
    model: str, dtype: str | None, device: str | None, report: Report
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, by default onto the GPU if there is one, and its tokenizer.

    Raises:
        BishareError: see `load_model`; or there is no tokenizer (BS805).
    """
    import torch

    silence_libraries()
    from bishare_dsl.models.load import load_model, require_weights

    source = require_weights(model)
    report.note(f"loading {model} ...")
    default = "cuda" if torch.cuda.is_available() else None
    live, tokenizer = load_model(source, dtype=dtype, device=device or default)
    if tokenizer is None:
        raise EvaluateError(codes.NO_TOKENIZER(model=model))
    return live, tokenizer


@contextmanager
def adapted(model: PreTrainedModel, stored: StoredAdapter | None, report: Report) -> Iterator[None]:
    """Put an adapter into a model for the duration of a block. None is the base alone."""
    from bishare_dsl.peft.method import install

    if stored is None:
        yield
        return
    for note in install(model, stored):
        report.note(note)
    try:
        yield
    finally:
        model.bishare.unload()  # type: ignore[union-attr, operator]
