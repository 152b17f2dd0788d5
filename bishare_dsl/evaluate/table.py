"""Tabulate the figures of lm_eval with their standard errors, one column per model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bishare_dsl.show.table import Table


def rows_of(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List every figure with its value for each model. ``results`` maps model names to lm_eval's results."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for label, result in results.items():
        for task, figures in result["results"].items():
            for key, value in figures.items():
                metric, comma, filter = key.partition(",")
                if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                    continue
                row = rows.setdefault(
                    (task, key),
                    {
                        "task": task,
                        "num_fewshot": result["n-shot"].get(task),
                        "metric": metric,
                        "filter": filter,
                        "scores": {},
                    },
                )
                stderr = figures.get(f"{metric}_stderr,{filter}")
                stderr = stderr if isinstance(stderr, float) else None
                row["scores"][label] = {"value": value, "stderr": stderr}
    return list(rows.values())


def table_of(rows: Iterable[Mapping[str, Any]], labels: Iterable[str]) -> Table:
    """Return a table with a column for each model."""
    cells = []
    for row in rows:
        metric = f"{row['metric']} {row['filter']}".removesuffix(" none")
        scores = [row["scores"].get(label) for label in labels]
        shots = "" if row["num_fewshot"] is None else str(row["num_fewshot"])
        cells.append([row["task"], shots, metric, *map(_score, scores)])
    return Table(["task", "n-shot", "metric", *labels], cells, left={0, 2})


def _score(score: Mapping[str, float | None] | None) -> str:
    numbers = () if score is None else score.values()
    return " ± ".join(f"{value:.4f}" for value in numbers if value is not None)
