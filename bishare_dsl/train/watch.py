"""What runs of one and of several adapters share: schedule, sealed checkpoints, signals, early stopping."""

from __future__ import annotations

import math
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, TrainerCallback, get_scheduler
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args
from transformers.utils import logging

from bishare_dsl.diagnostics import Problem
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.diagnostics.codes.verify import NO_GRADIENT
from bishare_dsl.models.hooks import own_part
from bishare_dsl.train import folder as folders
from bishare_dsl.train.arguments import catch_refusals
from bishare_dsl.train.errors import TrainError, TrainingInterrupted, translate_refusals
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.request import Request

EACH = {"loss": "losses", "eval_loss": "eval_losses", "eval_accuracy": "eval_accuracies"}
"""Keys of the log, with the keys under which a run of several tasks has the value of each task."""

Schedule = Callable[[int], float]
"""A factor of the learning rate, as a function of the number of steps done."""


def schedule_of(args: Args, warm_up: int, steps: int) -> Schedule | None:
    """Return the schedule of a run with this many steps; None if it depends on more than the step.

    The k-th of n warm-up steps has k / n of the learning rate, so the first one learns too.
    """
    probe = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    kinds: Any = args.lr_scheduler_kwargs
    with catch_refusals():
        scheduler = get_scheduler(args.lr_scheduler_type, probe, warm_up, steps, kinds)
    if not isinstance(scheduler, LambdaLR):
        return None
    (factor,) = scheduler.lr_lambdas
    return lambda step: factor(step + 1 if step < warm_up else step)


class Watch(TrainerCallback):
    """Seals checkpoints, and checks for non-finite values and for a stop request right before each step.

    Args:
        record: what each checkpoint records of its run, for `folder.seal`.
        report: receives the warning about tensors without a gradient.

    Attributes:
        trainer: the trainer, created after the callback.
        asked: whether the user requested a stop.
        stopping: whether all processes have agreed to stop after this step.
    """

    trainer: Any

    def __init__(
        self,
        record: Mapping[str, Any] = {},
        report: Callable[[Problem, None], None] = lambda *_: None,
    ) -> None:
        self._record, self._report = record, report
        self.asked: Callable[[], bool] = lambda: False
        self.stopping = False

    def on_pre_optimizer_step(
        self, args: Args, state: State, control: Control, **more: Any
    ) -> None:
        # A scaled gradient may be infinite; the scaler then skips the step and reduces the scale.
        scaled = self.trainer.accelerator.scaler is not None
        gradient = 0.0 if scaled else _norm(more["optimizer"])
        self.check_gradients(args, state)
        bad, self.stopping = self._of_any(args, [not math.isfinite(gradient), self.asked()])
        if bad:
            raise _not_finite(args, state, gradient)

    def check_gradients(self, args: Args, state: State) -> None:
        """Report trainable tensors without a gradient (BS873), after two steps: at first, A's is zero."""
        if state.global_step - self.trainer.done != 2 or not args.learning_rate:
            return
        gradients = dict(self.trainer.gradients())
        missing = [n for n, grad in gradients.items() if grad is None or not own_part(grad).any()]
        if missing:
            names = ", ".join(f"`{name}`" for name in missing[:8])
            names += f" and {len(missing) - 8} more" if missing[8:] else ""
            step, total = state.global_step + 1, len(gradients)
            problem = NO_GRADIENT(count=len(missing), total=total, step=step, names=names)
            self._report(problem, None)

    def _of_any(self, args: Args, flags: Sequence[bool]) -> Sequence[bool]:
        """Return which of the flags are set in any process."""
        if args.world_size == 1:
            return flags
        together = torch.tensor(flags, dtype=torch.int32, device=args.device)
        return [bool(flag) for flag in self.trainer.accelerator.reduce(together, "sum")]

    def on_save(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()
        if args.should_save:
            folder = Path(str(args.output_dir))
            folders.seal(folder / f"checkpoint-{state.global_step}", self._record)

    def on_step_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # Users want to see the last loss.
        elif self.stopping:
            control.should_training_stop = True
            # At the end of an epoch, the checkpoint waits for logging and evaluation.
            control.should_save = not float(state.epoch or 0).is_integer()

    def on_epoch_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        if self.stopping and state.global_step < state.max_steps:
            ended = float(state.epoch or 0).is_integer()
            control.should_save = ended
            control.should_log &= ended
            control.should_evaluate &= ended


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


def _not_finite(args: Args, state: State, value: float) -> TrainError:
    """Build the error for a gradient that is not finite, with the checkpoint to resume from."""
    sealed = folders.checkpoints(Path(str(args.output_dir)))
    kept = f"`{sealed[-1]}` is the last checkpoint" if sealed else "no checkpoint exists yet"
    step = state.global_step + 1
    return TrainError(codes.NOT_FINITE(what="gradient", step=step, value=value, kept=kept))


@torch.no_grad()
def _norm(optimizer: Any) -> float:
    """Compute the norm of this process's part of the gradient."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = [own_part(p.grad).float() for p in parameters if p.grad is not None]
    norms = [torch.linalg.vector_norm(part) for part in parts]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAID = b"\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once\n"


def run_loop(trainer: Any, watch: Watch, request: Request, reporter: Reporter) -> None:
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
