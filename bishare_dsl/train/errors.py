"""The exceptions of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from bishare_dsl.diagnostics import BishareError, one_line
from bishare_dsl.diagnostics.codes import train as codes


class TrainError(BishareError):
    """A run cannot be started, resumed or gone on with (BS730 to BS799)."""


class TrainingInterrupted(KeyboardInterrupt):
    """A run was asked to stop (SIGINT or SIGTERM), and has saved a checkpoint to go on from.

    Attributes:
        step: optimizer steps that are done.
        steps: that the whole run has.
        checkpoint: where they are saved.
    """

    def __init__(self, step: int, steps: int, checkpoint: Path):
        super().__init__(f"interrupted at step {step:,} of {steps:,}; saved in {checkpoint}")
        self.step, self.steps, self.checkpoint = step, steps, checkpoint


@contextmanager
def translate_refusals(folder: Path) -> Iterator[None]:
    """Turn into our own error what the system refuses to do with a folder.

    Raises:
        TrainError: it refused (BS747).
    """
    try:
        yield
    except OSError as error:
        raise TrainError(codes.CANNOT_SAVE(folder=folder, reason=one_line(error))) from error
    except Exception as error:
        if not _is_of_saving(error):
            raise
        reason = "the disk is full, or the system refuses"
        raise TrainError(codes.CANNOT_SAVE(folder=folder, reason=reason)) from error


def _is_of_saving(error: Exception) -> bool:
    """Tell whether torch or safetensors failed to write: each has many errors of its own for a full disk."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    places = ((frame.f_globals.get("__name__"), frame.f_code.co_name) for frame in frames)
    return any(place in _SAVING for place in places)


_SAVING = {("torch.serialization", "save"), ("safetensors.torch", "save_file")}
