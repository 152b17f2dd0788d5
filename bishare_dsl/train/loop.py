"""The training loop, with signals, progress and errors."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

import torch
from transformers import PrinterCallback
from transformers.utils import logging

from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train import folder as folders
from bishare_dsl.train.errors import TrainError, TrainingInterrupted, translate_refusals
from bishare_dsl.train.reporter import Reporter

if TYPE_CHECKING:
    from bishare_dsl.train.bank_trainer import BankTrainer
    from bishare_dsl.train.request import Request
    from bishare_dsl.train.trainer import AdapterTrainer
    from bishare_dsl.train.watch import Watch


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAID = b"\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once\n"


def run_loop(
    trainer: AdapterTrainer | BankTrainer, watch: Watch, request: Request, reporter: Reporter
) -> None:
    """Train, and save the adapter."""
    folder, resume = request.output_dir, request.resume
    if reporter.quiet:
        trainer.remove_callback(PrinterCallback)
    trainer.done = 0 if resume is None else folders.step_of(resume)
    try:
        with hear_signals(not reporter.quiet) as watch.asked, translate_refusals(folder):
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
            state = trainer.state
            if watch.stopping and state.global_step < state.max_steps:
                saved = folder / f"checkpoint-{state.global_step}"
                raise TrainingInterrupted(state.global_step, state.max_steps, saved)
            trainer.save_model()
            trainer.save_state()
            trainer.accelerator.wait_for_everyone()
    except torch.OutOfMemoryError as error:
        reason = str(error).split(".")[0]
        raise TrainError(codes.OUT_OF_MEMORY(reason=reason)) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Silence transformers and TRL except for errors; they would report the tokenizer's tokens."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # From PEFT.
            yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def hear_signals(says: bool) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM within a block request a stop; yield a function that reports it.

    The second stops at once. Outside of the main thread, signals are not changed.

    Args:
        says: whether to confirm the request on standard error.
    """
    heard: list[int] = []

    def restore() -> None:
        for which, handler in before.items():
            # None: installed by something other than Python.
            signal.signal(which, signal.SIG_DFL if handler is None else handler)

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        restore()
        if says:
            with suppress(OSError):
                os.write(2, _SAID)  # The signal may have interrupted `print`.

    main = threading.current_thread() is threading.main_thread()
    before = {which: signal.signal(which, hear) for which in _SIGNALS} if main else {}
    try:
        yield lambda: bool(heard)
    finally:
        restore()
