"""What became of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bishare_dsl.train.data import DataReport


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        folder: the adapter's, with the run's record, log and checkpoints.
        model: adapted and trained, in eval mode.
        trainable: parameters that were trained.
        steps: optimizer steps of the whole run, and ``epochs`` what they were of the data.
        batch: examples in a step.
        loss_first: the first that was logged, and ``loss_last`` the last.
        eval_loss: on the held-out rows, of the adapter that was kept; None where there are none.
        tokens: that were trained on, padding apart, in the whole run.
        seconds: since the run was started or resumed.
        peak_memory: bytes, of the device, or of this process where that is the CPU.
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
    loss_first: float | None
    loss_last: float | None
    eval_loss: float | None
    tokens: int
    tokens_per_second: float
    seconds: float
    peak_memory: int
    data: Mapping[str, DataReport] = field(repr=False)
    history: Sequence[Mapping[str, Any]] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the model and the history."""
        left_out = ("model", "history", "folder", "data")
        plain = {k: v for k, v in vars(self).items() if k not in left_out}
        reports = {name: report.as_dict() for name, report in self.data.items()}
        return {"adapter": str(self.folder), **plain, "data": reports}

    def __str__(self) -> str:
        loss = f"{_number(self.loss_first)} at first, {_number(self.loss_last)} at last"
        if self.eval_loss is not None:
            loss += f"; held out {_number(self.eval_loss)}"
        rows = [
            ("steps", f"{self.steps:,} of {self.batch:,} examples, {self.epochs:.2f} epochs"),
            ("loss", loss),
            ("tokens", f"{self.tokens:,}, {self.tokens_per_second:,.0f} a second"),
            ("time", f"{self.seconds:,.0f} s"),
            ("peak memory", f"{self.peak_memory / 2**20:,.0f} MiB"),
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


def peak_memory(device: torch.device) -> int:
    """Return the bytes that were used, of the device, or of this process where that is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
