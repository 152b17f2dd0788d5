"""What was measured, side by side: as rows, as a table, as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Score:
    """A figure of lm_eval's; ``stderr`` is None where it gives none. ``samples`` is the number of rows."""

    value: float
    stderr: float | None
    samples: int | None


@dataclass(frozen=True)
class Row:
    """One metric of one task or group, for every model that has it.

    ``num_fewshot`` is None for a group whose tasks differ in it, ``higher_is_better`` where lm_eval does not
    say. ``depth`` is 0 for what was asked for, and 1 and more for what a group contains.
    """

    task: str
    num_fewshot: int | None
    metric: str
    filter: str
    higher_is_better: bool | None
    depth: int
    scores: dict[str, Score] = field(default_factory=dict)

    @property
    def best(self) -> tuple[str, ...]:
        """The models with the best figure; none where all have the same, or it is not known what is best."""
        values = {label: score.value for label, score in self.scores.items()}
        if self.higher_is_better is None or len(set(values.values())) < 2:
            return ()
        best = (max if self.higher_is_better else min)(values.values())
        return tuple(label for label, value in values.items() if value == best)


@dataclass(frozen=True)
class Evaluation:
    """Models side by side.

    ``results`` holds by the model's label what lm_eval returned, one of its results for each number of
    shots. ``limit`` is lm_eval's: figures with one are for trying things out.
    """

    model: str
    results: Mapping[str, Sequence[Mapping[str, Any]]]
    limit: float | None = None

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every figure, in lm_eval's order, what a group contains behind the group."""
        found: dict[tuple[Any, ...], Row] = {}
        for label, runs in self.results.items():
            for row, score in (each for run in runs for each in _rows(run)):
                key = row.task, row.num_fewshot, row.metric, row.filter
                found.setdefault(key, row).scores[label] = score
        return tuple(found.values())

    def as_data(self) -> dict[str, Any]:
        """Return the rows for JSON."""
        return {
            "model": self.model,
            "models": list(self.results),
            "limit": self.limit,
            "rows": [{**asdict(row), "best": list(row.best)} for row in self.rows],
        }

    def __str__(self) -> str:
        """Return a table: lm_eval's own of one model, a column for each of several.

        Of a group's own groups only the figures are in the latter.
        """
        from lm_eval.utils import make_table
        from pytablewriter import MarkdownTableWriter

        notes = []
        if len(self.results) == 1:
            [runs] = self.results.values()
            tables = [make_table(run) for run in runs]
        else:
            heads = ["Tasks", "n-shot", "Metric", "", *self.results]
            cells = [_cells(row, self.results) for row in self.rows if row.depth < 2]
            writer = MarkdownTableWriter(
                headers=heads, value_matrix=cells, type_hints=["str"] * len(heads)
            )
            tables = [writer.dumps()]
            notes += ["* best of its row"] if any(row.best for row in self.rows) else []
        if (limit := self.limit) is not None:
            part = f"{limit:.0%}" if limit < 1 else f"{int(limit)} rows"
            notes.append(f"limited to {part} of each task: not for reporting")
        return "\n".join([*tables, *(["; ".join(notes)] if notes else [])]).rstrip("\n")


def _cells(row: Row, labels: Iterable[str]) -> list[str]:
    shots = "" if row.num_fewshot is None else str(row.num_fewshot)
    metric = row.metric if row.filter == "none" else f"{row.metric}, {row.filter}"
    arrow = {True: "↑", False: "↓", None: ""}[row.higher_is_better]
    task = f" - {row.task}" if row.depth else row.task
    return [task, shots, metric, arrow, *(_cell(row, label) for label in labels)]


def _cell(row: Row, label: str) -> str:
    if (score := row.scores.get(label)) is None:
        return ""
    error = "" if score.stderr is None else f" ± {score.stderr:.4f}"
    return f"{score.value:.4f}{error}{'*' if label in row.best else ''}"


def _rows(run: Mapping[str, Any]) -> Iterator[tuple[Row, Score]]:
    """Read one result of lm_eval's, whose keys are such as ``acc,none`` and ``acc_stderr,none``."""
    better_of = run["higher_is_better"]
    for task, depth in _order(run["group_subtasks"], run["results"]):
        figures, tasks = run["results"][task], _inside(run["group_subtasks"], task)
        shots = _common(run["n-shot"].get(inside) for inside in tasks)
        for key, value in figures.items():
            metric, comma, filter = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            better = _common(better_of.get(inside, {}).get(metric) for inside in tasks)
            stderr = figures.get(f"{metric}_stderr,{filter}")
            stderr = float(stderr) if isinstance(stderr, (int, float)) else None
            score = Score(float(value), stderr, figures.get("sample_len"))
            yield Row(task, shots, metric, filter, better, depth), score


def _common(values: Iterable[Any]) -> Any:
    """Return the value that all are; None if they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _inside(groups: Mapping[str, Sequence[str]], name: str) -> list[str]:
    """List a task itself, or a group's tasks, and those of its groups, which lm_eval does not look at."""
    inside = groups.get(name)
    return (
        [name] if inside is None else [task for child in inside for task in _inside(groups, child)]
    )


def _order(
    groups: Mapping[str, Sequence[str]], results: Iterable[str]
) -> Iterator[tuple[str, int]]:
    """List tasks and groups, each group before what it contains, with how deep they are in groups."""

    def walk(name: str, depth: int) -> Iterator[tuple[str, int]]:
        if name in results:
            yield name, depth
        for child in groups.get(name, ()):
            yield from walk(child, depth + 1)

    contained = {child for children in groups.values() for child in children}
    for name in dict.fromkeys([*groups, *results]):
        if name not in contained:
            yield from walk(name, 0)
