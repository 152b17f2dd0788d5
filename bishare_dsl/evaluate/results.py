"""What was measured, side by side: as rows, as a table, as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

_MARK = "*"


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
    scores: Mapping[str, Score] = field(default_factory=dict)

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
            for run in runs:
                for row, score in _rows(run):
                    key = row.task, row.num_fewshot, row.metric, row.filter
                    scores = found.setdefault(key, row).scores
                    assert isinstance(scores, dict)
                    scores[label] = score
        return tuple(found.values())

    def as_data(self) -> dict[str, Any]:
        """The rows for JSON."""
        return {
            "model": self.model,
            "models": list(self.results),
            "limit": self.limit,
            "rows": [{**asdict(row), "best": list(row.best)} for row in self.rows],
        }

    def table(self, *, colour: bool = False, width: int | None = None) -> str:
        """The rows for people; of a group's own groups, only their figures.

        Args:
            colour: with the escape sequences of a terminal.
            width: of the terminal; by default as wide as it needs to be.
        """
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        labels, marks = list(self.results), any(row.best for row in self.rows)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for title in ("task", "shots", "metric"):
            table.add_column(title)
        for label in labels:
            table.add_column(Text(label), justify="right")
        for row in self.rows:
            if row.depth > 1:
                continue
            arrow = {True: " ↑", False: " ↓", None: ""}[row.higher_is_better]
            metric = row.metric if row.filter == "none" else f"{row.metric}, {row.filter}"
            shots = "" if row.num_fewshot is None else str(row.num_fewshot)
            cells = [
                Text(_cell(row, label, marks), style="bold" if label in row.best else "")
                for label in labels
            ]
            table.add_row(Text("  " * row.depth + row.task), shots, Text(metric + arrow), *cells)
        notes = ["± standard error", *([f"{_MARK} best of its row"] if marks else [])]
        if self.limit is not None:
            notes.append(f"limited to {_limit(self.limit)} of each task: not for reporting")
        console = Console(
            width=width or 10_000,
            force_terminal=colour,
            color_system="standard" if colour else None,
            force_jupyter=False,
            highlight=False,
        )
        with console.capture() as rendered:
            console.print(table)
        lines = [*rendered.get().splitlines(), "", "; ".join(notes)]
        return "\n".join(line.rstrip() for line in lines)

    def __str__(self) -> str:
        return self.table()


def _cell(row: Row, label: str, marks: bool) -> str:
    score = row.scores.get(label)
    if score is None:
        return ""
    error = "" if score.stderr is None else f" ± {score.stderr:.4f}"
    mark = _MARK if label in row.best else " " if marks else ""
    return f"{score.value:.4f}{error}{mark}"


def _limit(limit: float) -> str:
    return f"{limit:.0%}" if limit < 1 else f"{int(limit)} rows"


def _rows(run: Mapping[str, Any]) -> Iterator[tuple[Row, Score]]:
    """The figures of one result of lm_eval's, whose keys are such as ``acc,none`` and ``acc_stderr,none``."""
    for task, depth in _order(run):
        figures, tasks = run["results"][task], _inside(run, task)
        for key, value in figures.items():
            metric, comma, filter = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            stderr = figures.get(f"{metric}_stderr,{filter}")
            row = Row(
                task=task,
                num_fewshot=_common(run["n-shot"], tasks),
                metric=metric,
                filter=filter,
                higher_is_better=_common(
                    {t: better.get(metric) for t, better in run["higher_is_better"].items()}, tasks
                ),
                depth=depth,
                scores={},
            )
            stderr = float(stderr) if isinstance(stderr, (int, float)) else None
            yield row, Score(float(value), stderr, figures.get("sample_len"))


def _inside(run: Mapping[str, Any], name: str) -> list[str]:
    """A task itself, or the tasks of a group and of its groups.

    (Of a group in a group lm_eval forgets what its tasks have in common.)
    """
    inside = run["group_subtasks"]
    return (
        [task for child in inside[name] for task in _inside(run, child)]
        if name in inside
        else [name]
    )


def _common(values: Mapping[str, Any], tasks: Iterable[str]) -> Any:
    """The value that all of some tasks have; None if they differ."""
    found = {values.get(task) for task in tasks}
    return found.pop() if len(found) == 1 else None


def _order(run: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Tasks and groups, each group before what it contains, with how deep they are in groups."""
    inside: Mapping[str, Sequence[str]] = run["group_subtasks"]

    def walk(name: str, depth: int) -> Iterator[tuple[str, int]]:
        if name in run["results"]:
            yield name, depth
        for child in inside.get(name, ()):
            yield from walk(child, depth + 1)

    contained = {child for children in inside.values() for child in children}
    for name in dict.fromkeys([*inside, *run["results"]]):
        if name not in contained:
            yield from walk(name, 0)
