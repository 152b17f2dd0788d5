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
from bishare_dsl.api import load_adapter
from bishare_dsl.diagnostics import AdapterError, BishareError, Problem, raise_errors
from bishare_dsl.diagnostics.codes import evaluate as codes
from bishare_dsl.evaluate.errors import EvaluateError
from bishare_dsl.models.load import architecture_of, load_model, load_tokenizer, require_weights

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
) -> tuple[tuple[Candidate, ...], tuple[Problem, ...]]:
    """The candidates, and what to warn of, once it is sure that a model that is named can be made into them.

    Raises:
        BishareError: the model, an adapter or the tokenizer is missing or does not fit; nothing is loaded.
    """
    require_weights(model)
    chosen = candidates(folders, base=base)
    problems = check_adapters(chosen, architecture_of(model))
    check_tokenizer(model, chat=chat)
    return chosen, problems


def loaded(
    model: str, *, dtype: str | None, device: str | None, chat: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that is named, and its tokenizer.

    Raises:
        BishareError: as `load_model` and `needed` do.
    """
    live, tokenizer = load_model(model, dtype=dtype, device=device or default_device())
    return live, needed(tokenizer, model, chat=chat)


@contextmanager
def made_into(model: PreTrainedModel, candidate: Candidate) -> Iterator[None]:
    """A block in which the model is a candidate, in eval mode; afterwards it is as it was.

    Raises:
        BishareError: as `load_adapter` does.
    """
    training = model.training
    handle = getattr(model, "bishare", None)
    try:
        if candidate.folder is not None:
            load_adapter(candidate.folder, model)
            try:
                model.eval()
                yield
            finally:
                model.bishare.unload()  # type: ignore[operator, union-attr]
        elif candidate.disable and handle is not None:
            with handle.disable_adapter():
                model.eval()
                yield
        else:
            model.eval()
            yield
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


def check_tokenizer(model: str, *, chat: bool) -> None:
    """See, before a model is loaded, that its tokenizer is there, with a chat template if that is wanted.

    Raises:
        EvaluateError: it is not (BS805, BS807).
        ModelError: as `load_tokenizer` does.
    """
    if require_weights(model).kind != "gguf":  # From which it takes as long to read as the model.
        needed(load_tokenizer(model), model, chat=chat)
