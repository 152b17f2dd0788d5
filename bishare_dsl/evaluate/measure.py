"""lm_eval on a live model, by its own `simple_evaluate`, and its own files."""

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
    """Evaluate a model as it stands.

    Args:
        label: what the model is called if it fails.
        output_path: where lm_eval writes its files; None for nowhere.
        log_samples: write prompts and answers there too.
        settings: keywords of ``simple_evaluate``, such as ``model``, an ``HFLM``.

    Returns:
        What lm_eval returns, without samples; and how many likelihoods are not numbers, of which lm_eval
        takes one all the same.

    Raises:
        EvaluateError: lm_eval, a task or the model failed (BS806).
    """
    tracker = EvaluationTracker(output_path=output_path and str(output_path))
    try:
        found: dict[str, Any] = simple_evaluate(evaluation_tracker=tracker, **settings)
    except Exception as error:  # lm_eval's, a task's, the model's: of any type
        raise EvaluateError(RUN_FAILED(model=label, reason=one_line(error))) from error
    # Before lm_eval makes text of them.
    samples = found.pop("samples")
    broken = sum(map(math.isnan, _likelihoods(samples)))
    samples = samples if log_samples else {}
    tracker.save_results_aggregated(results=found, samples=samples)
    for task in samples:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return found, broken


def _likelihoods(samples: Mapping[str, list[dict[str, Any]]]) -> Iterator[float]:
    answers = (
        a for rows in samples.values() for row in rows for many in row["resps"] for a in many
    )
    return (answer[0] for answer in answers if isinstance(answer, tuple))
