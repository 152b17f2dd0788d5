"""Models side by side: each figure of lm_eval with its standard error, and what chance gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from bishare_dsl.show.table import Table

_ACCURACY = ("acc", "acc_norm")


def chance_of(loaded: Mapping[str, Any], samples: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the accuracy that drawing an answer has, where a task is to choose one of several.

    Args:
        loaded: tasks and groups, as `TaskManager.load` returns them. A group has the chance that all its
            tasks have.
        samples: lm_eval's, of these tasks.
    """
    found: dict[str, float | None] = {}
    for name, task in loaded["tasks"].items():
        # A task with code of its own for its figures may mean anything by them.
        own = task.config.process_results is not None or task.multiple_target
        if task.OUTPUT_TYPE == "multiple_choice" and not own:
            each = (1 / len(task.doc_to_choice(row["doc"])) for row in samples[name])
            found[name] = round(fmean(each), 6)
    for name, group in loaded["groups"].items():
        inside = {found.get(task.task_name) for task in group.get_all_tasks()}
        found[name] = inside.pop() if len(inside) == 1 else None
    return found


def rows_of(
    results: Mapping[str, Mapping[str, Any]], chance: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """List every figure, with what each model has; ``results`` are lm_eval's, by the model's name."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for label, result in results.items():
        for task, figures in result["results"].items():
            for key, value in figures.items():
                metric, comma, filter = key.partition(",")
                if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                    continue
                row = found.setdefault(
                    (task, key),
                    {
                        "task": task,
                        "num_fewshot": result["n-shot"].get(task),
                        "metric": metric,
                        "filter": filter,
                        "chance": chance.get(task) if metric in _ACCURACY else None,
                        "scores": {},
                    },
                )
                stderr = figures.get(f"{metric}_stderr,{filter}")
                stderr = stderr if isinstance(stderr, float) else None
                row["scores"][label] = {"value": value, "stderr": stderr}
    return list(found.values())


def table_of(rows: Iterable[Mapping[str, Any]], labels: Iterable[str]) -> Table:
    """Return a table with a column for each model."""
    cells = []
    for row in rows:
        metric = f"{row['metric']} {row['filter']}".removesuffix(" none")
        scores = [row["scores"].get(label) for label in labels]
        shots = "" if row["num_fewshot"] is None else str(row["num_fewshot"])
        cells.append([row["task"], shots, metric, _figure(row["chance"]), *map(_score, scores)])
    return Table(["task", "n-shot", "metric", "chance", *labels], cells, left={0, 2})


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _score(score: Mapping[str, float | None] | None) -> str:
    return "" if score is None else " ± ".join(filter(None, map(_figure, score.values())))
