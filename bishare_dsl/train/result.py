"""What became of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.show.table import Table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bishare_dsl.train.data.encoding import DataReport


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        folder: the adapter's, with checkpoints and what was asked.
        model: adapted and trained, in eval mode.
        model_name: what named it.
        trainable: parameters that were trained.
        steps: optimizer steps of the whole run, and ``epochs`` what they were of the data.
        batch: examples in a step.
        eval_loss: on the held-out rows, of the adapter that was kept; None where there are none.
        tokens: that were trained on, padding apart, in the whole run.
        seconds: since the run was started or resumed.
        data: what became of the rows, by ``"train"`` and ``"eval"``.
        history: what was logged, as the Trainer has it.
    """

    folder: Path
    model: PreTrainedModel = field(repr=False)
    model_name: str
    trainable: int
    steps: int
    epochs: float
    batch: int
    eval_loss: float | None
    tokens: int
    seconds: float
    data: Mapping[str, DataReport] = field(repr=False)
    history: Sequence[Mapping[str, Any]] = field(repr=False)

    @property
    def loss_first(self) -> float:
        """The first loss that was logged."""
        return float(next(entry["loss"] for entry in self.history if "loss" in entry))

    @property
    def loss_last(self) -> float:
        """The last loss that was logged."""
        return float(next(entry["loss"] for entry in reversed(self.history) if "loss" in entry))

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the model and the history."""
        left_out = ("model", "history", "folder", "data")
        plain = {k: v for k, v in vars(self).items() if k not in left_out}
        reports = {name: asdict(report) for name, report in self.data.items()}
        losses = {"loss_first": self.loss_first, "loss_last": self.loss_last}
        return {"adapter": str(self.folder), **plain, **losses, "data": reports}

    def __str__(self) -> str:
        loss = f"{self.loss_first:.4f} at first, {self.loss_last:.4f} at last"
        if self.eval_loss is not None:
            loss += f"; held out {self.eval_loss:.4f}"
        rows = [
            ("steps", f"{self.steps:,} of {self.batch:,} examples, {self.epochs:.2f} epochs"),
            ("loss", loss),
            ("tokens", f"{self.tokens:,}"),
            ("time", f"{self.seconds:,.0f} s"),
            ("adapter", f"{self.folder}, {self.trainable:,} parameters"),
        ]
        base = f"--model {self.model_name}"
        uses = [
            f"bishare generate {self.folder} {base} --prompt ...",
            f"bishare eval {self.folder} {base} --tasks ...",
            f"bishare merge {self.folder} {base} --out merged",
        ]
        table = "\n".join(f"{name:11}  {text}" for name, text in rows)
        return table + "\n\n" + "\n".join(uses)


@dataclass(frozen=True)
class TaskResult:
    """What became of one of several tasks.

    Attributes:
        name: the task's, and its adapter's.
        folder: the adapter's, as `load_adapter` takes it; None of one that was tried and not kept.
        rows: that were trained on.
        steps: optimizer steps.
        loss_first: in the first steps that were logged; None where it did none in this run.
        loss_last: in the last ones.
        eval_loss: on the held-out rows.
        stopped: why it ended before its time: a gradient was no number, and the adapter is as it was before;
            or another one was better. None where it did not.
    """

    name: str
    folder: str | None
    rows: int
    steps: int
    loss_first: float | None
    loss_last: float | None
    eval_loss: float | None
    stopped: str | None


@dataclass(frozen=True)
class ManyResult:
    """A finished run of several tasks.

    Attributes:
        folder: of the run, with the adapters in it.
        model: with an adapter for each task, in eval mode.
        trainable: parameters of each adapter that were trained.
        tasks: in the order in which they were given.
        tokens: that were trained on, padding apart, in the whole run.
        seconds: since the run was started or resumed.
        history: what was logged, as the Trainer has it.
    """

    folder: Path
    model: PreTrainedModel = field(repr=False)
    trainable: int
    tasks: tuple[TaskResult, ...]
    tokens: int
    seconds: float
    history: Sequence[Mapping[str, Any]] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the model and the history."""
        plain = {k: v for k, v in vars(self).items() if k not in ("model", "history", "tasks")}
        tasks = [asdict(task) for task in self.tasks]
        return {**plain, "folder": str(self.folder), "tasks": tasks}

    def __str__(self) -> str:
        head = ["task", "rows", "steps", "first loss", "last loss", "held out", "adapter"]
        rows = []
        for task in self.tasks:
            losses = (task.loss_first, task.loss_last, task.eval_loss)
            said = ["" if loss is None else f"{loss:.4f}" for loss in losses]
            where = ", ".join(part for part in (task.folder, task.stopped) if part)
            rows.append((task.name, f"{task.rows:,}", f"{task.steps:,}", *said, where))
        table = Table(head, rows, left={0, 6})
        return f"{table}\n\n{self.tokens:,} tokens in {self.seconds:,.0f} s"
