"""Adapters on one base that is loaded once, evaluated one after another."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import BishareWarning, Problem, render
from bishare_dsl.evaluate.candidates import activate_candidate, check_candidates, load_base
from bishare_dsl.evaluate.results import Evaluation
from bishare_dsl.evaluate.tasks import load_tasks
from bishare_dsl.models import architecture_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Folder = str | os.PathLike[str]


def _warn(found: Problem | str) -> None:
    text = found if isinstance(found, str) else render(found)
    warnings.warn(text, BishareWarning, stacklevel=3)


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
    output_path: Folder | None = None,
    bars: bool | None = None,
    tell: Callable[[Problem | str], None] = _warn,
    note: Callable[[str], None] = lambda _: None,
    done: Callable[[Evaluation], None] = lambda _: None,
    **settings: Any,
) -> Evaluation:
    """Evaluate adapters on one base, which is loaded once, with lm_eval.

    Tasks are loaded and adapters checked before the model is. A model that is given is afterwards as it
    was before.

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
        output_path: where lm_eval's files are written, each model's as soon as it is done.
        bars: show progress bars; by default on a terminal.
        tell: told of what is found, and what lm_eval warns of; by default that is a `BishareWarning`.
        note: told what is being done.
        done: told after each model what there is by then.
        **settings: keywords of ``lm_eval.simple_evaluate``, such as ``limit``. ``fewshot_as_multiturn``
            follows ``apply_chat_template`` where it is not given.

    Raises:
        BishareError: a task is unknown or cannot be loaded, an adapter does not fit, the model cannot be
            found or has no tokenizer, or evaluating fails (BS8xx, BS6xx, BS5xx).
        TypeError: there is no such setting.
    """
    adapters = [adapters] if isinstance(adapters, (str, os.PathLike)) else list(adapters)
    chat = bool(settings.get("apply_chat_template"))
    if settings.setdefault("fewshot_as_multiturn", None) is None:
        settings["fewshot_as_multiturn"] = chat
    name = model if isinstance(model, str) else architecture_of(model).name
    bars = sys.stderr.isatty() if bars is None else bars
    live, models, warned = check_candidates(
        model, adapters, base=base, chat=chat, tokenizer=tokenizer
    )
    for problem in warned:
        tell(problem)
    if output_path is not None:
        path = Path(output_path)
        (path.parent if path.suffix == ".json" else path).mkdir(parents=True, exist_ok=True)
    note("loading the tasks ...")
    suites = load_tasks(
        _split(tasks),
        num_fewshot=num_fewshot,
        include_path=include_path,
        confirm_run_unsafe_code=settings.get("confirm_run_unsafe_code", False),
        bars=bars,
    )
    from bishare_dsl.evaluate.harness import check_settings, measure  # lm_eval is there by now.

    check_settings(settings)
    if isinstance(model, str):
        note(f"loading {model} ...")
    live, tokenizer = load_base(live, tokenizer, dtype=dtype, device=device, chat=chat)
    results: dict[str, list[dict[str, Any]]] = {}
    for number, candidate in enumerate(models, 1):
        note(f"evaluating {candidate.label} ({number} of {len(models)}) ...")
        started = time.monotonic()
        with activate_candidate(live, candidate) as notes:
            found, problems = measure(
                live,
                tokenizer,
                candidate,
                suites,
                settings,
                base=name,
                output_path=output_path,
                bars=bars,
            )
        for told in (*notes, *problems):
            tell(told)
        note(f"{candidate.label} took {time.monotonic() - started:,.0f} s")
        results[candidate.label] = found
        done(Evaluation(name, dict(results), settings.get("limit")))
    return Evaluation(name, results, settings.get("limit"))


def _split(tasks: str | Iterable[str]) -> list[str]:
    """Return names of tasks, several in a string or not: separated by commas, each once."""
    given = [tasks] if isinstance(tasks, str) else tasks
    return list(dict.fromkeys(n.strip() for names in given for n in names.split(",") if n.strip()))
