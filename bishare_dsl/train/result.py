"""Results of a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from bishare_dsl.show.table import Table
from bishare_dsl.train.data.encoding import DataReport
from bishare_dsl.train.many.groups import GroupChoice, GroupScores, choices_text

EACH = {"loss": "losses", "eval_loss": "eval_losses", "eval_accuracy": "eval_accuracies"}
"""Keys of the log, with the keys under which a run of several tasks has the value of each task."""

NOT_FALLEN = 0.999
"""A last loss of more than this part of the first one has not fallen."""


@dataclass(frozen=True)
class TaskResult:
    """The result of one adapter.

    Attributes:
        name: the task's name, with the seed or candidate values if there are several.
        folder: the adapter's folder for `load_adapter`; None if it was not written.
        steps: optimizer steps.
        loss_first: the first logged loss, if any.
        loss_last: the last logged loss; NaN if a gradient was not finite, and its step not applied.
        eval_loss: the held-out loss of the written adapter; None without held-out rows.
        accuracy: the fraction of held-out rows whose correct option is the likeliest; None without options.
        data: reports on the rows, by ``"train"`` and ``"eval"``.
        start: the members that it starts from; None if it starts from zero.
    """

    name: str
    folder: str | None
    steps: int
    loss_first: float | None
    loss_last: float | None
    eval_loss: float | None
    accuracy: float | None
    data: Mapping[str, DataReport] = field(repr=False)
    start: str | None = None

    @property
    def rows(self) -> int:
        """The number of training examples."""
        return self.data["train"].kept


@dataclass(frozen=True)
class TrainResult:
    """A finished run of one or several tasks.

    Attributes:
        folder: the run's folder: the adapter's, or the parent of several.
        model: the adapted model, in eval mode.
        model_name: the name of the model.
        trainable: trained parameters per adapter.
        owned: the parameters per adapter, or the private and shared ones of a library's adapters, in words.
        tasks: results in the order of the tasks.
        steps: optimizer steps of the whole run, and ``epochs`` the passes over the data; the maximum of
            several tasks.
        batch: examples per task and step.
        tokens: input tokens of the whole run, without padding.
        seconds: time since the run started or resumed.
        history: the Trainer's log.
        group_scores: how numbers of groups do, if they were asked for.
        group_choices: the groups that new tasks of a library of groups take, by task.
    """

    folder: Path
    model: PreTrainedModel = field(repr=False)
    model_name: str
    trainable: int
    owned: str
    tasks: tuple[TaskResult, ...]
    steps: int
    epochs: float
    batch: int
    tokens: int
    seconds: float
    history: Sequence[Mapping[str, Any]] = field(repr=False)
    group_scores: GroupScores | None = None
    group_choices: Mapping[str, GroupChoice] = field(default_factory=dict)

    @property
    def loss_first(self) -> float:
        """The first logged loss, averaged over the tasks."""
        return float(next((e["loss"] for e in self.history if "loss" in e), float("nan")))

    @property
    def loss_last(self) -> float:
        """The last logged loss, averaged over the tasks that were running then."""
        return float(next((e["loss"] for e in reversed(self.history) if "loss" in e), float("nan")))

    @property
    def eval_loss(self) -> float | None:
        """The mean held-out loss of the written adapters; None without held-out rows."""
        return _mean(task.eval_loss for task in self.tasks if task.folder)

    @property
    def accuracy(self) -> float | None:
        """The mean accuracy of the written adapters among options; None without options."""
        return _mean(task.accuracy for task in self.tasks if task.folder)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the model and the history."""
        plain = {k: v for k, v in vars(self).items() if k not in ("model", "history")}
        for name in ("loss_first", "loss_last", "eval_loss", "accuracy"):
            plain[name] = getattr(self, name)
        tasks = [asdict(task) for task in self.tasks]
        if self.group_scores is not None:
            plain["group_scores"] = asdict(self.group_scores)
        plain["group_choices"] = {name: asdict(one) for name, one in self.group_choices.items()}
        return {**plain, "folder": str(self.folder), "tasks": tasks}

    def __str__(self) -> str:
        written = [task.folder for task in self.tasks if task.folder]
        several = len(self.tasks) > 1
        most = max(task.rows for task in self.tasks)
        batch = f"all {most:,}" if self.batch > most else f"{self.batch:,}"
        only = filter(None, (self.tasks[0].folder, self.tasks[0].start))
        adapters = f"{len(written)} in {self.folder}" if several else ", ".join(only)
        accuracy = None if self.accuracy is None else f"{self.accuracy:.1%} among the options"
        lines = {
            "steps": f"{self.steps:,} of {batch} examples, {self.epochs:.2f} epochs",
            "loss": self.loss_line,
            "held-out loss": None if self.eval_loss is None else f"{self.eval_loss:.4f}",
            "held-out accuracy": accuracy,
            "tokens": f"{self.tokens:,}",
            "time": f"{self.seconds:,.0f} s",
            "adapters" if several else "adapter": f"{adapters}, {self.owned}",
        }
        if not self.steps:
            lines |= {"steps": "none: not trained", "loss": None, "tokens": None}
        shown = {name: text for name, text in lines.items() if text}
        width = max(13, *map(len, shown))
        parts = ["\n".join(f"{name:{width}}  {text}" for name, text in shown.items())]
        if several:
            parts.insert(0, str(self._table()))
        if written:
            folder = shlex.quote(written[0])
            base = f"--model {shlex.quote(self.model_name)}"
            few = " ".join(map(shlex.quote, written[:3]))
            judge = ""
            if self.accuracy is not None:
                judge = f"bishare eval {few} {base} --data ...\n"
            parts.append(f"{judge}bishare merge {folder} {base} --out merged")
        return "\n\n".join([*parts, *self._texts_of_groups()])

    def _texts_of_groups(self) -> list[str]:
        """Return the groups that new tasks take, and scores of numbers of groups, where there are any."""
        texts = list[str]()
        if self.group_choices:
            texts.append(choices_text(self.group_choices))
        if self.group_scores is not None:
            texts.append(str(self.group_scores))
        return texts

    @property
    def loss_line(self) -> str:
        """The first and the last loss, and what to change if it did not fall."""
        text = f"{self.loss_first:.4f} at first, {self.loss_last:.4f} at last"
        if self.loss_last > NOT_FALLEN * self.loss_first:
            text += ": it did not fall; try a higher --learning_rate, or more --max_steps"
        return text

    def _table(self) -> Table:
        rows = list[dict[str, object]]()
        for task in self.tasks:
            row: dict[str, object] = {"task": task.name, "rows": task.rows, "steps": task.steps}
            losses = (task.loss_first, task.loss_last, task.eval_loss)
            for name, loss in zip(("first", "last", "held-out"), losses, strict=True):
                row[f"{name} loss"] = "" if loss is None else f"{loss:.4f}"
            if self.accuracy is not None:
                row["correct"] = "" if task.accuracy is None else f"{task.accuracy:.1%}"
            row["adapter"] = ", ".join(filter(None, (task.folder, task.start)))
            rows.append(row)
        head = [*rows[0]]
        return Table(head, [[*row.values()] for row in rows], left={0, len(head) - 1})


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def logged(history: Sequence[Mapping[str, Any]], key: str, task: str | None) -> dict[int, float]:
    """Return the values of a key in a run's history by step, for one ``task`` if there are several.

    Args:
        history: Trainer's log.
        key: one of `EACH`.
        task: None for a run of one adapter.
    """
    if task is None:
        return {entry["step"]: entry[key] for entry in history if key in entry}
    key = EACH[key]
    of_tasks = ((entry["step"], entry[key]) for entry in history if key in entry)
    return {step: losses[task] for step, losses in of_tasks if task in losses}
