"""What runs of one and of several adapters share: the schedule, sealed checkpoints, early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, get_scheduler
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args

from bishare_dsl.diagnostics import Problem
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.diagnostics.codes.verify import NO_GRADIENT
from bishare_dsl.models.hooks import own_part
from bishare_dsl.train import folder as folders
from bishare_dsl.train.arguments import catch_refusals
from bishare_dsl.train.errors import TrainError

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
        keep: the maximum number of checkpoints; Trainer would remove one before the next one is sealed.
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
        keep: int | None = None,
        report: Callable[[Problem, None], None] = lambda *_: None,
    ) -> None:
        self._record, self._keep, self._report = record, keep, report
        self.asked: Callable[[], bool] = lambda: False
        self.stopping = False

    def on_pre_optimizer_step(
        self, args: Args, state: State, control: Control, **more: Any
    ) -> None:
        accelerator, loss, gradient = self.trainer.accelerator, self.trainer.take_loss(), 0.0
        # A scaled gradient may be infinite; the scaler then skips the step and reduces the scale.
        if (engine := self.trainer.deepspeed) is not None:
            gradient = float(engine.get_global_grad_norm() or 0)
            if state.global_step == self.trainer.done:
                self.trainer.check_saving()
        elif accelerator.scaler is None:
            gradient = _norm(more["optimizer"])
        flags = [not math.isfinite(loss), not math.isfinite(gradient), self.asked()]
        self.check_gradients(args, state)
        bad_loss, bad_gradient, self.stopping = self._of_any(args, flags)
        if bad_loss or bad_gradient:
            raise _not_finite(args, state, "loss" if bad_loss else "gradient", (loss, gradient))

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
            folders.remove_old(folder, self._keep, state.best_model_checkpoint)

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


def _not_finite(args: Args, state: State, what: str, values: tuple[float, float]) -> TrainError:
    """Build the error for a non-finite step, with the checkpoint to resume from."""
    value = next((value for value in values if not math.isfinite(value)), math.nan)
    try:
        last = f"`{folders.find_checkpoint(Path(str(args.output_dir)))}` is the last checkpoint"
    except TrainError:
        last = "no checkpoint exists yet"
    problem = codes.NOT_FINITE(what=what, step=state.global_step + 1, value=value, kept=last)
    return TrainError(problem)


@torch.no_grad()
def _norm(optimizer: Any) -> float:
    """Compute the norm of this process's part of the gradient."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = [own_part(p.grad).float() for p in parameters if p.grad is not None]
    norms = [torch.linalg.vector_norm(part) for part in parts]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
