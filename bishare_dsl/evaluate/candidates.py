"""What is evaluated on one base model: the base itself, and adapters, one after another."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bishare_dsl.compiler import install, read_fitting
from bishare_dsl.diagnostics import AdapterError, BishareError, Problem, raise_errors
from bishare_dsl.diagnostics.codes import evaluate as codes
from bishare_dsl.evaluate.errors import EvaluateError
from bishare_dsl.models import Source, architecture_of, load_model
from bishare_dsl.models.load import load_tokenizer, require_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bishare_dsl.models import Architecture

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
    """List the base where it is asked for, or where there is nothing else, and then each adapter.

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
    """Check that every adapter is whole and fits the model; return what to warn of (BS614).

    Raises:
        AdapterError: everything that is wrong with any of them.
    """
    problems: list[Problem] = []
    for folder in (candidate.folder for candidate in chosen if candidate.folder is not None):
        try:
            found: Sequence[Problem] = read_fitting(folder, architecture)[1]
        except BishareError as error:
            found = error.problems
        for problem in found:
            named = str(folder) in problem.message
            message = problem.message if named else f"`{folder}`: {problem.message}"
            problems.append(replace(problem, message=message))
    raise_errors(AdapterError, problems)
    return tuple(problems)


def check_candidates(
    model: str | PreTrainedModel,
    folders: Sequence[str | os.PathLike[str]],
    *,
    base: bool,
    chat: bool,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[Source | PreTrainedModel, tuple[Candidate, ...], tuple[Problem, ...]]:
    """Return what a name means, the candidates, and what to warn of, once the name can become each of them.

    A model that is given is a candidate itself, where it has an adapter and no folder is given.

    Raises:
        BishareError: the model, an adapter or the tokenizer is missing or does not fit; nothing is loaded.
    """
    live = require_weights(model) if isinstance(model, str) else model
    chosen = candidates(folders, base=base)
    if not folders and (handle := getattr(live, "bishare", None)) is not None:
        chosen = (*(chosen if base else ()), Candidate(handle.plan.spec))
    architecture = architecture_of(live)
    problems = check_adapters(chosen, architecture)
    if not isinstance(live, Source):
        require_tokenizer(tokenizer, architecture.name, chat=chat)
    elif live.kind != "gguf":  # From which a tokenizer takes as long to read as the model.
        require_tokenizer(tokenizer or load_tokenizer(live), live.place, chat=chat)
    return live, chosen, problems


def load_base(
    live: Source | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    dtype: torch.dtype | str | None,
    device: str | None,
    chat: bool,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model that is named, by default to the GPU where there is one, as lm_eval does.

    Returns:
        The model, and its tokenizer, or the one given.

    Raises:
        BishareError: as `load_model` and `require_tokenizer` do.
    """
    if isinstance(live, Source):
        default = "cuda" if torch.cuda.is_available() else None
        live, own = load_model(live, dtype=dtype, device=device or default)
        tokenizer = tokenizer or own
    return live, require_tokenizer(tokenizer, architecture_of(live).name, chat=chat)


def require_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, model: str, *, chat: bool
) -> PreTrainedTokenizerBase:
    """Return the tokenizer, if there is one; with a chat template, if that is wanted.

    Raises:
        EvaluateError: there is not (BS805, BS807).
    """
    if tokenizer is None:
        raise EvaluateError(codes.NO_TOKENIZER(model=model))
    if chat and not tokenizer.chat_template:
        raise EvaluateError(codes.NO_CHAT_TEMPLATE(model=model))
    return tokenizer


@contextmanager
def activate_candidate(model: PreTrainedModel, candidate: Candidate) -> Iterator[tuple[str, ...]]:
    """Make the model a candidate, in eval mode, for a block; afterwards it is as it was.

    Yields:
        What is done in another way than asked, as of `install`.

    Raises:
        BishareError: as `read_fitting` and `install` do.
    """
    training = model.training
    handle = getattr(model, "bishare", None)
    with ExitStack() as back:
        back.callback(model.train, training)
        model.eval()
        notes: tuple[str, ...] = ()
        if candidate.folder is not None:
            notes = install(model, read_fitting(candidate.folder, model)[0])
            back.callback(model.bishare.unload)  # type: ignore[union-attr, arg-type]
        elif candidate.disable and handle is not None:
            back.enter_context(handle.disable_adapter())
        yield notes
