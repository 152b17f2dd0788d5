"""What happens between the steps of a run, at the points that transformers offers for it.

The order of the callbacks matters: `Guards` before those of the user, who see good steps only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args
from transformers.utils import logging

from bishare_dsl.models.hooks import own_part
from bishare_dsl.train import checkpoint as checkpoints
from bishare_dsl.train.errors import TrainingInterrupted, translate_refusals
from bishare_dsl.train.guard import check_step
from bishare_dsl.train.record import LOG, division
from bishare_dsl.train.state import (
    check_options,
    generators,
    load_optimizer,
    optimizer_state,
    set_generators,
)
from bishare_dsl.writing import discard, move_into_place, replace_file, temporary_path

if TYPE_CHECKING:
    from bishare_dsl.train.trainer import AdapterTrainer


class Guards(TrainerCallback):
    """Sees, right before a step is applied, that it may be, and whether any process was asked to stop.

    Attributes:
        trainer: whose steps they are; it is made after the callback.
        asked: whether the user wants the run to stop.
        stopping: whether all processes know that the run is to stop after this step.
    """

    trainer: AdapterTrainer

    def __init__(self) -> None:
        self.asked: Callable[[], bool] = lambda: False
        self.stopping = False

    def on_pre_optimizer_step(self, args: Args, state: State, control: Control, **_: Any) -> None:
        guard, accelerator = self.trainer.guard, self.trainer.accelerator
        loss, gradient = guard.loss(), 0.0
        # A scaled gradient may be infinite; the scaler then leaves the step out, and scales less.
        if accelerator.scaler is None:
            gradient = _norm(self.trainer.parameters)
        flags = [not math.isfinite(loss), not math.isfinite(gradient), self.asked()]
        if args.world_size > 1:
            together = torch.tensor(flags, dtype=torch.int32, device=args.device)
            flags = [bool(flag) for flag in accelerator.reduce(together, "sum")]
        bad_loss, bad_gradient, self.stopping = flags
        if bad_gradient and math.isfinite(gradient):
            gradient = math.nan
        check_step(loss, bad_loss, gradient)
        guard.keep(self.trainer.parameters, state.global_step)


class Saves(TrainerCallback):
    """Makes of what transformers saves a checkpoint of ours, and ends a run that is to stop.

    transformers saves into a folder aside, which is ``args.output_dir`` while it saves; `on_save` puts in
    what is missing, and gives it its name as one step.

    At the end of an epoch more may be logged and evaluated than after its last step. So a checkpoint of that
    step waits for it: whoever goes on from there goes on with the next epoch.

    Attributes:
        best: the checkpoint with the lowest loss on held-out rows, where that is measured.
    """

    def __init__(self, trainer: AdapterTrainer, guards: Guards, run: dict[str, Any]) -> None:
        self._trainer, self._guards, self._run = trainer, guards, run
        self._waiting = self._leaving = False
        self._folder = trainer.folder
        self._aside = temporary_path(self._folder / "checkpoint")
        self._adapter_only, self._keep = trainer.args.save_only_model, trainer.args.save_total_limit
        self._epoch: dict[str, Any] = {}
        self.best: Path | None = None
        trainer.before_saving = self._begin

    def on_train_begin(self, args: Args, state: State, control: Control, **_: Any) -> None:
        args.save_only_model = True  # What else it would save are pickles.
        args.save_total_limit = None
        self.best = Path(state.best_model_checkpoint) if state.best_model_checkpoint else None
        state.best_model_checkpoint = None  # transformers would load it, in its own way.

    def on_epoch_begin(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self._epoch = generators(args.device)  # Of which some samplers draw the order of the epoch.

    def on_step_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # The last loss is what everybody asks for.
        elif self._guards.stopping:
            control.should_save = self._leaving = True
        if float(state.epoch or 0).is_integer():
            self._waiting, control.should_save = control.should_save, False

    def on_epoch_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        control.should_save |= self._waiting
        self._waiting = False

    def on_save(self, args: Args, state: State, control: Control, **made: Any) -> None:
        name = checkpoints.name_of(state.global_step)
        new, folder = self._aside / name, self._folder / name
        if best := state.best_global_step:
            found = self._folder / checkpoints.name_of(best)
            self.best = found if found == folder or found.is_dir() else self.best
        with self._trainer.counts.pause():
            content = None if self._adapter_only else self._state(**made)
            if args.should_save:
                with translate_refusals(folder):
                    state.best_model_checkpoint = None if self.best is None else str(self.best)
                    state.save_to_json(str(new / checkpoints.TRAINER))
                    checkpoints.write_state(new, content, state.global_step, self._run)
                    move_into_place(new, folder)
            state.best_model_checkpoint, args.output_dir = None, str(self._folder)
            self._trainer.accelerator.wait_for_everyone()
            if args.should_save:
                with translate_refusals(self._folder):
                    checkpoints.rotate(self._folder, self._keep, self.best)
        if self._leaving:
            raise TrainingInterrupted(state.global_step, state.max_steps, folder)

    def on_train_end(self, args: Args, state: State, control: Control, **_: Any) -> None:
        if args.should_save and self._keep == 1 and self.best is not None:
            # Of a run that goes on the last one is kept beside the best.
            checkpoints.rotate(self._folder, 1, self.best, last=False)

    def close(self) -> None:
        """Leave the arguments as they were found, and nothing that was begun; also after an error."""
        args = self._trainer.args
        args.output_dir, args.save_only_model = str(self._folder), self._adapter_only
        args.save_total_limit = self._keep
        if args.should_save:
            discard(self._aside)

    def _begin(self) -> None:
        self._trainer.args.output_dir = str(self._aside)

    def _state(self, optimizer: Any, lr_scheduler: Any, **_: Any) -> dict[str, Any]:
        """Return all that the next step depends on beside the adapter; every process has to call this."""
        from accelerate.utils import gather_object  # type: ignore[import-untyped]

        trainer = self._trainer
        scaler = trainer.accelerator.scaler
        together, loss = trainer.counts.state()
        now = generators(trainer.args.device)
        own = {"generators": now, "epoch": self._epoch, "loss": loss}
        return {
            "optimizer": optimizer_state(optimizer, trainer.adapter.tensors()),
            "schedule": lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "division": division(trainer.args),
            "processes": gather_object([own]),
            **together,
        }


class Resumes(TrainerCallback):
    """Begins a run where its checkpoint ends: all but the adapter, which is loaded before.

    The generators come last: at the beginning of the epoch they are as they were then, so that its order is
    drawn again, and before the first step as they were at the checkpoint.
    """

    def __init__(self, trainer: AdapterTrainer, resumed: checkpoints.Checkpoint | None) -> None:
        self._trainer, self._resumed = trainer, resumed
        self._verbosity = logging.get_verbosity()
        # transformers misses the base in the checkpoint, and tells of tokens that the tokenizer has.
        logging.set_verbosity_error()

    def on_train_begin(self, args: Args, state: State, control: Control, **made: Any) -> None:
        self.close()
        optimizer, schedule = made["optimizer"], made["lr_scheduler"]
        trainer, saved = self._trainer, self._resumed
        content = None if saved is None else saved.state
        trainer.counts.begin(content, args.process_index, args.world_size)
        if saved is None or content is None:
            return
        scaler = trainer.accelerator.scaler
        with checkpoints.blame_checkpoint(saved):
            load_optimizer(optimizer, trainer.adapter.tensors(), content["optimizer"])
            check_options(content["schedule"], schedule.state_dict())
            schedule.load_state_dict(content["schedule"])
            if saved.run.get("steps", state.max_steps) < state.max_steps:
                # The optimizer has the rate of the shorter run; a step makes it that of the longer.
                schedule.last_epoch -= 1
                schedule.step()
            if scaler is not None and content["scaler"] is not None:
                scaler.load_state_dict(content["scaler"])

    def on_epoch_begin(self, args: Args, state: State, control: Control, **_: Any) -> None:
        within = not float(state.epoch or 0).is_integer()
        self._draw_on("epoch" if within else "generators", args)
        if not within:
            self._resumed = None

    def on_step_begin(self, args: Args, state: State, control: Control, **_: Any) -> None:
        self._draw_on("generators", args)
        self._resumed = None

    def close(self) -> None:
        """Let transformers speak as it did before; also after an error."""
        logging.set_verbosity(self._verbosity)

    def _draw_on(self, which: str, args: Args) -> None:
        saved = self._resumed
        # Of another number of processes none has this one's.
        if saved and saved.state and len(saved.state["processes"]) == args.world_size:
            with checkpoints.blame_checkpoint(saved):
                own = saved.state["processes"][args.process_index]
                set_generators(own.get(which) or own["generators"], args.device)


class LogFile(TrainerCallback):
    """Writes what is logged into ``log.jsonl``, an object on each line."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG

    def on_train_begin(self, args: Args, state: State, control: Control, **_: Any) -> None:
        # What came after the checkpoint will come again.
        lines = "".join(json.dumps(entry) + "\n" for entry in state.log_history)
        with translate_refusals(self._path):
            replace_file(self._path, lines.encode())

    def on_log(self, args: Args, state: State, control: Control, **said: Any) -> None:
        with translate_refusals(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**said["logs"], "step": state.global_step}) + "\n")


@torch.no_grad()
def _norm(parameters: list[torch.Tensor]) -> float:
    """Compute the norm of the gradient's part that this process has."""
    parts = [own_part(p.grad).float() for p in parameters if p.grad is not None]
    norms = [torch.linalg.vector_norm(part) for part in parts]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
