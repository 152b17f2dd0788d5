"""Run lm_eval's `simple_evaluate` on a live model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker

from bishare_dsl.diagnostics import EvaluateError, one_line
from bishare_dsl.diagnostics.codes.evaluate import RUN_FAILED


def measure(
    label: str, *, output_path: Path | None, log_samples: bool, **settings: Any
) -> tuple[dict[str, Any], int]:
    """Evaluate a model in its current state.

    Args:
        label: the model's name in errors.
        output_path: folder for lm_eval's files, or None.
        log_samples: also write prompts and answers there.
        settings: keywords of ``simple_evaluate``, such as ``model``, an ``HFLM``.

    Returns:
        lm_eval's result without samples, and the number of likelihoods that are NaN, which lm_eval does not
        report.

    Raises:
        EvaluateError: lm_eval, a task or the model failed (BS806).
    """
    tracker = EvaluationTracker(output_path=output_path and str(output_path))
    try:
        outcome: dict[str, Any] = simple_evaluate(evaluation_tracker=tracker, **settings)
    except Exception as error:  # lm_eval, a task or the model may raise anything
        raise EvaluateError(RUN_FAILED(model=label, reason=one_line(error))) from error
    # Before lm_eval converts them to text.
    samples = outcome.pop("samples")
    broken = sum(map(math.isnan, _likelihoods(samples)))
    samples = samples if log_samples else {}
    tracker.save_results_aggregated(results=outcome, samples=samples)
    for task in samples:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return outcome, broken


def _likelihoods(samples: Mapping[str, list[dict[str, Any]]]) -> Iterator[float]:
    answers = (
        a for rows in samples.values() for row in rows for many in row["resps"] for a in many
    )
    return (answer[0] for answer in answers if isinstance(answer, tuple))
