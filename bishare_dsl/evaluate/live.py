"""One base model, and what it is made into, one thing after another."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bishare_dsl.adapter.files import base_problems, read_adapter
from bishare_dsl.compiler import install, read_fitting
from bishare_dsl.diagnostics import AdapterError, BishareError, Problem, raise_errors
from bishare_dsl.diagnostics.codes import evaluate as codes
from bishare_dsl.evaluate.errors import EvaluateError
from bishare_dsl.models.load import architecture_of, load_model, load_tokenizer, require_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bishare_dsl.models import Architecture, Source

BASE = "base"


@dataclass(frozen=True)
class Candidate:
    """What is looked at: an adapter's folder, or else the model, with the adapter that it has or without.

    ``label`` is unique in a comparison.
    """

    label: str
    folder: Path | None = None
    disable: bool = False


def candidates(folders: Iterable[str | os.PathLike[str]], *, base: bool) -> tuple[Candidate, ...]:
    """The base where it is asked for, or where there is nothing else, and then each adapter.

    An adapter is called after its folder, and by its whole path where that says more than one thing.
    """
    distinct = list(dict.fromkeys(Path(folder) for folder in folders))
    count = Counter([BASE, *(folder.resolve().name for folder in distinct)])
    found = [Candidate(BASE, disable=True)] if base or not distinct else []
    for folder in distinct:
        name = folder.resolve().name
        found.append(Candidate(name if count[name] == 1 else str(folder), folder))
    return tuple(found)


def check_adapters(chosen: Sequence[Candidate], architecture: Architecture) -> tuple[Problem, ...]:
    """See that every adapter is whole and fits the model.

    Returns:
        What to warn of (BS614).

    Raises:
        AdapterError: everything that is wrong with any of them.
    """
    problems: list[Problem] = []
    for folder in (candidate.folder for candidate in chosen if candidate.folder is not None):
        try:
            plan = read_adapter(folder).plan
        except BishareError as error:
            problems += error.problems
            continue
        problems += (
            replace(problem, message=f"`{folder}`: {problem.message}")
            for problem in base_problems(plan, architecture)
        )
    raise_errors(AdapterError, problems)
    return tuple(problems)


def checked(
    model: str, folders: Iterable[str | os.PathLike[str]], *, base: bool, chat: bool
) -> tuple[Source, tuple[Candidate, ...], tuple[Problem, ...]]:
    """What a name means, the candidates, and what to warn of, once that model can surely be made into them.

    Raises:
        BishareError: the model, an adapter or the tokenizer is missing or does not fit; nothing is loaded.
    """
    source = require_weights(model)
    chosen = candidates(folders, base=base)
    problems = check_adapters(chosen, architecture_of(source))
    check_tokenizer(source, chat=chat)
    return source, chosen, problems


def loaded(
    source: Source, *, dtype: str | None, device: str | None, chat: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model, and its tokenizer.

    Raises:
        BishareError: as `load_model` and `needed` do.
    """
    live, tokenizer = load_model(source, dtype=dtype, device=device or default_device())
    return live, needed(tokenizer, source.place, chat=chat)


@contextmanager
def made_into(model: PreTrainedModel, candidate: Candidate) -> Iterator[tuple[str, ...]]:
    """A block in which the model is a candidate, in eval mode; afterwards it is as it was.

    Yields:
        What is done in another way than asked, as of `install`.

    Raises:
        BishareError: as `read_fitting` and `install` do.
    """
    training = model.training
    handle = getattr(model, "bishare", None)
    try:
        if candidate.folder is not None:
            stored, _ = read_fitting(candidate.folder, model)  # What is to be told was told.
            notes = install(model, stored)
            try:
                model.eval()
                yield notes
            finally:
                model.bishare.unload()  # type: ignore[operator, union-attr]
        elif candidate.disable and handle is not None:
            with handle.disable_adapter():
                model.eval()
                yield ()
        else:
            model.eval()
            yield ()
    finally:
        model.train(training)


def default_device() -> str | None:
    """Where a model goes by default, as with lm_eval: to the GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else None


def needed(
    tokenizer: PreTrainedTokenizerBase | None, model: str, *, chat: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer, if there is one; with a chat template, if that is wanted.

    Raises:
        EvaluateError: there is not (BS805, BS807).
    """
    if tokenizer is None:
        raise EvaluateError(codes.NO_TOKENIZER(model=model))
    if chat and not tokenizer.chat_template:
        raise EvaluateError(codes.NO_CHAT_TEMPLATE(model=model))
    return tokenizer


def check_tokenizer(source: Source, *, chat: bool) -> None:
    """See, before a model is loaded, that its tokenizer is there, with a chat template if that is wanted.

    Raises:
        EvaluateError: it is not (BS805, BS807).
        ModelError: as `load_tokenizer` does.
    """
    if source.kind != "gguf":  # From which it takes as long to read as the model.
        needed(load_tokenizer(source), source.place, chat=chat)
