"""Evaluating from Python."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import BishareWarning, render
from bishare_dsl.evaluate.live import (
    Candidate,
    candidates,
    check_adapters,
    check_tokenizer,
    default_device,
    made_into,
    needed,
)
from bishare_dsl.evaluate.results import Evaluation
from bishare_dsl.evaluate.settings import Settings
from bishare_dsl.evaluate.tasks import load_tasks
from bishare_dsl.models import Source, architecture_of, load_model
from bishare_dsl.models.load import require_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Folder = str | os.PathLike[str]


def evaluate(
    model: str | PreTrainedModel,
    adapters: Folder | Iterable[Folder] = (),
    *,
    tasks: str | Iterable[str],
    base: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    num_fewshot: int | None = None,
    include_path: Folder | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluate adapters on one base, which is loaded once, with lm_eval.

    Tasks are loaded and adapters checked before the model is. A model that is given is afterwards as it
    was before. What lm_eval warns of is a `BishareWarning`.

    Args:
        model: a checkpoint folder, a ``.gguf`` file, a Hub id; or a model, adapted or not.
        adapters: their folders, evaluated one after another. Without any, the model as it is.
        tasks: lm_eval's tasks, groups, tags and patterns, paths of task files, and `GROUPS` by name; one
            string may hold several, separated by commas.
        base: evaluate the base alone too, first.
        tokenizer: needed for a model that is given.
        dtype: of a model that is loaded; by default the checkpoint's.
        device: of a model that is loaded; by default the GPU if there is one.
        num_fewshot: for every task, in place of what a group or a task says.
        include_path: a folder of task files.
        **settings: the fields of `Settings`, which are lm_eval's flags.

    Raises:
        BishareError: a task is unknown or cannot be loaded, an adapter does not fit, the model cannot be
            found or has no tokenizer, or evaluating fails (BS8xx, BS6xx, BS5xx).
    """
    chosen = Settings(**settings)
    adapters = [adapters] if isinstance(adapters, (str, os.PathLike)) else list(adapters)
    models = candidates(adapters, base=base)
    live = require_weights(model) if isinstance(model, str) else model
    architecture = architecture_of(live)
    if not adapters and (handle := getattr(live, "bishare", None)) is not None:
        models = (*(models if base else ()), Candidate(handle.plan.spec))
    for problem in check_adapters(models, architecture):
        warnings.warn(render(problem), BishareWarning, stacklevel=2)
    if isinstance(live, Source) and tokenizer is None:
        check_tokenizer(live, chat=bool(chosen.apply_chat_template))
    loaded = load_tasks(
        split(tasks),
        num_fewshot=num_fewshot,
        include_path=include_path,
        confirm_run_unsafe_code=chosen.confirm_run_unsafe_code,
        bars=sys.stderr.isatty(),
    )
    name = model if isinstance(model, str) else architecture.name
    if isinstance(live, Source):
        live, own = load_model(live, dtype=dtype, device=device or default_device())
        tokenizer = tokenizer or own
    tokenizer = needed(tokenizer, name, chat=bool(chosen.apply_chat_template))
    from bishare_dsl.evaluate.harness import Harness  # It needs lm_eval, which is there by now.

    harness, results = Harness(loaded, chosen, name), {}
    for candidate in models:
        with made_into(live, candidate) as notes:
            results[candidate.label], problems = harness.evaluate(
                live, tokenizer, candidate.label, candidate.folder
            )
        for text in (*notes, *map(render, problems)):
            warnings.warn(text, BishareWarning, stacklevel=2)
    for said in harness.said:
        warnings.warn(f"lm_eval: {said}", BishareWarning, stacklevel=2)
    return Evaluation(name, results, chosen.limit)


def split(tasks: str | Iterable[str]) -> list[str]:
    """Names of tasks, several in a string or not: separated by commas, each once."""
    given = [tasks] if isinstance(tasks, str) else tasks
    return list(dict.fromkeys(n.strip() for names in given for n in names.split(",") if n.strip()))
