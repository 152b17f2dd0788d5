"""What became of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
