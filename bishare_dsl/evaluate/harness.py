"""lm_eval on a live model: its own `simple_evaluate`, and its own files."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import sanitize_model_name

from bishare_dsl.diagnostics import BishareError, Problem, one_line
from bishare_dsl.diagnostics.codes import evaluate as codes
from bishare_dsl.evaluate.errors import EvaluateError
from bishare_dsl.evaluate.logs import capture_logs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bishare_dsl.evaluate.candidates import Candidate
    from bishare_dsl.evaluate.tasks import LoadedTasks


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise a TypeError where ``simple_evaluate`` does not take a keyword."""
    inspect.signature(simple_evaluate).bind_partial(**settings)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    candidate: Candidate,
    tasks: LoadedTasks,
    settings: Mapping[str, Any],
    *,
    base: str,
    output_path: str | os.PathLike[str] | None = None,
    bars: bool = False,
) -> tuple[list[dict[str, Any]], list[Problem | str]]:
    """Evaluate a model as it stands.

    Args:
        model: in eval mode.
        tokenizer: the model's.
        candidate: what the model has been made into.
        tasks: that it is evaluated on.
        settings: keywords of ``simple_evaluate``.
        base: what to call the base model in lm_eval's files.
        output_path: where to write them, as soon as a number of shots is done.
        bars: show lm_eval's progress bars.

    Returns:
        What lm_eval returns, for each number of shots; and what to warn of: what lm_eval does, and
        likelihoods that are not numbers (BS809).

    Raises:
        EvaluateError: lm_eval, a task or the model failed (BS806).
    """
    results: list[dict[str, Any]] = []
    said: list[str] = []
    likelihoods: list[float] = []
    args = {"pretrained": base}
    if candidate.folder is not None:
        args["bishare"] = str(candidate.folder)
    try:
        with capture_logs([]):  # lm_eval warns of being given a model.
            lm = HFLM(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=settings.get("batch_size") or 1,
                max_batch_size=settings.get("max_batch_size") or 64,
            )
        for shots, items in tasks.runs:
            tracker = EvaluationTracker(output_path=output_path and str(output_path))
            with capture_logs(said, bars=bars):
                result = simple_evaluate(
                    model=lm,
                    model_args=args,
                    tasks=items,
                    task_manager=tasks.manager,
                    num_fewshot=shots,
                    device=str(model.device),
                    evaluation_tracker=tracker,
                    **{**settings, "log_samples": True},
                )
                samples = result.pop("samples")
                likelihoods += _likelihoods(samples)
                about = tracker.general_config_tracker
                about.model_name = candidate.label
                about.model_name_sanitized = sanitize_model_name(candidate.label)
                kept = samples if settings.get("log_samples") else {}
                tracker.save_results_aggregated(results=result, samples=kept)
                for task in kept:
                    tracker.save_results_samples(task_name=task, samples=samples[task])
            results.append(result)
    except BishareError:
        raise
    except Exception as error:  # lm_eval's, a task's, the model's: of any type
        raise EvaluateError(
            codes.RUN_FAILED(model=candidate.label, reason=one_line(error))
        ) from error
    problems: list[Problem | str] = [f"lm_eval: {line}" for line in said]
    if broken := sum(map(math.isnan, likelihoods)):
        problems.append(
            codes.NOT_NUMBERS(count=broken, total=len(likelihoods), model=candidate.label)
        )
    return results, problems


def _likelihoods(samples: Mapping[str, list[dict[str, Any]]]) -> list[float]:
    """List what a model was asked for, each once: a row stands there again for every filter."""
    rows = {(task, row["doc_id"]): row for task, rows in samples.items() for row in rows}
    answers = (a for row in rows.values() for repeats in row["resps"] for a in repeats)
    return [a[0] if isinstance(a, tuple) else a for a in answers if not isinstance(a, str)]
