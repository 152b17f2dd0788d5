"""The exceptions of training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from bishare_dsl.diagnostics import BishareError, advise, nearest, one_line
from bishare_dsl.diagnostics.codes import train as codes


class TrainError(BishareError):
    """A run cannot start, resume or continue (BS730 to BS799)."""


class TrainingInterrupted(KeyboardInterrupt):
    """A run stopped on request (SIGINT or SIGTERM) after saving a checkpoint.

    Attributes:
        step: optimizer steps done.
        steps: optimizer steps of the whole run.
        checkpoint: the folder of the checkpoint.
        folder: of the run to resume.
    """

    def __init__(self, step: int, steps: int, checkpoint: Path):
        super().__init__(f"interrupted at step {step:,} of {steps:,}; saved in {checkpoint}")
        self.step = step
        self.steps = steps
        self.checkpoint = checkpoint
        self.folder = checkpoint.parent


@contextmanager
def catch_refusals(given: Mapping[str, object] = {}) -> Iterator[None]:
    """Convert errors that transformers raises about its arguments within a block to our own.

    Raises:
        TrainError: transformers does not know a ``given`` value (BS731), or rejects it (BS732).
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError, OSError) as error:
        match = re.match(r"(\S+) is not a valid \w+, please select one of (.+)", str(error))
        value, names = match.groups() if match else (None, "")
        for name in given:
            if str(given[name]) != value:
                continue
            valid = re.findall(r"'(\w+)'", names)
            help = advise("value", f"{name}:{value}") or nearest(str(value), valid, few=len(valid))
            problem = codes.WRONG_VALUE(name=name, value=value, reason="it is unknown", help=help)
            raise TrainError(problem) from error
        raise TrainError(codes.BAD_COMBINATION(reason=one_line(error))) from error


@contextmanager
def translate_refusals(folder: Path) -> Iterator[None]:
    """Convert errors of the operating system for a folder to our own.

    Raises:
        TrainError: another run has locked it (BS741), or the system refused (BS747).
    """
    try:
        yield
    except BlockingIOError:
        raise TrainError(codes.NOT_A_RUN(folder=folder)) from None
    except OSError as error:
        raise TrainError(codes.CANNOT_SAVE(folder=folder, reason=one_line(error))) from error
    except Exception as error:
        if not _is_of_saving(error):
            raise
        raise TrainError(codes.CANNOT_SAVE(folder=folder, reason="the disk is full")) from error


def _is_of_saving(error: Exception) -> bool:
    """Return whether torch or safetensors failed to write; each raises many errors for a full disk."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    places = ((frame.f_globals.get("__name__"), frame.f_code.co_name) for frame in frames)
    return any(place in _SAVING for place in places)


_SAVING = {("torch.serialization", "save"), ("safetensors.torch", "save_file")}
