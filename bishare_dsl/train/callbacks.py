"""What happens between the steps of a run: stopping when asked, and the log file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bishare_dsl.train.checkpoint import name_of
from bishare_dsl.train.errors import TrainingInterrupted, refusal_told
from bishare_dsl.writing import replace_file

if TYPE_CHECKING:
    from bishare_dsl.train.trainer import AdapterTrainer

LOG = "log.jsonl"


class Ends(TrainerCallback):
    """Begins where the checkpoint says, and stops with a checkpoint when all processes know of the wish.

    At the end of an epoch more may be logged and evaluated than after its last step. So a checkpoint of that
    step waits for it: whoever goes on from there goes on with the next epoch.
    """

    def __init__(self, trainer: AdapterTrainer) -> None:
        self._trainer = trainer
        self._waiting = self._leaving = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._trainer.begin()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # The last loss is what everybody asks for.
        elif self._trainer.stopping:
            control.should_save = self._leaving = True
        if float(state.epoch or 0).is_integer():
            self._waiting, control.should_save = control.should_save, False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_save |= self._waiting
        self._waiting = False

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._leaving:
            folder = self._trainer.folder / name_of(state.global_step)
            raise TrainingInterrupted(state.global_step, state.max_steps, folder)


class LogFile(TrainerCallback):
    """Writes what is logged into ``log.jsonl``, an object on each line."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # What came after the checkpoint will come again.
        lines = "".join(json.dumps(entry) + "\n" for entry in state.log_history)
        with refusal_told(self._path):
            replace_file(self._path, lines.encode())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        with refusal_told(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**(logs or {}), "step": state.global_step}) + "\n")
