"""What a run leaves to be read: its record, ``run.json``, and its log, ``log.jsonl``; without torch."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import AliasPath, BaseModel, ConfigDict, Field

from bishare_dsl.version import __version__
from bishare_dsl.writing import replace_file

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from bishare_dsl.plan import Plan
    from bishare_dsl.train.check import CheckedRun
    from bishare_dsl.train.data import DataReport
    from bishare_dsl.train.request import Request

RUN, LOG = "run.json", "log.jsonl"
_LARGEST = 1e300  # neither infinite nor NaN, nor a whole number that no float is
_PACKAGES = (
    *("torch", "transformers", "accelerate", "trl", "datasets"),
    *("safetensors", "tokenizers", "numpy"),
)
# What decides the numbers that a run ends with.
_DECIDE = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("num_train_epochs", "max_steps", "seed", "data_seed"),
    *("optim", "optim_args", "optim_target_modules", "weight_decay", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "label_smoothing_factor", "neftune_noise_alpha"),
    *("bf16", "fp16", "loss_type", "router_aux_loss_coef", "average_tokens_across_devices"),
    *("dataloader_drop_last", "train_sampling_strategy"),
)
_DECIDE_OWN = (
    *("format", "train_on", "max_length", "packing", "eval_split", "data_split", "dtype"),
    "load_in_4bit",
    *("lr_of", "weight_decay_of"),
)


def identity(
    request: Request, plan: Plan, data: DataReport, args: TrainingArguments, steps: int
) -> dict[str, Any]:
    """Return what must be the same for a run to be gone on with, by names that a user knows."""
    settings = request.settings.model_dump()
    return {
        "adapter's plan": plan.digest,
        "data": data.digest,
        "tokens": data.tokens,
        "effective batch": effective_batch(args),
        "steps": steps,
        **{name: _plain(getattr(args, name, None)) for name in _DECIDE},
        **{name: settings[name] for name in _DECIDE_OWN},
    }


def effective_batch(args: TrainingArguments) -> int:
    """Count the examples in an optimizer step, of all processes together."""
    at_once: int = args.per_device_train_batch_size * args.world_size
    return at_once * args.gradient_accumulation_steps


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in words what is not the same. Names that only one version of bishare knows do not count."""
    different = [name for name in now if name in before and before[name] != now[name]]
    return [
        f"the {name} is another"
        if name in ("adapter's plan", "data")
        else f"{name} was {before[name]} and is {now[name]}"
        for name in different
    ]


def division(args: TrainingArguments) -> dict[str, int]:
    """Return how a batch is divided."""
    return {
        "processes": args.world_size,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
    }


@dataclass
class Record:
    """The file, rewritten as a whole whenever something is known.

    Args:
        folder: of the run.
        writes: whether this process is the one that writes.
    """

    folder: Path
    writes: bool
    content: dict[str, Any] = field(default_factory=dict)

    def add(self, **values: Any) -> None:
        """Set fields, and write.

        Raises:
            OSError: the system refused; the file is as it was.
        """
        self.content |= values
        if self.writes:
            text = json.dumps(self.content, indent=2, default=str) + "\n"
            replace_file(self.folder / RUN, text.encode())


def describe_run(checked: CheckedRun) -> dict[str, Any]:
    """Describe what a run is made of."""
    import torch

    request, plan, args = checked.request, checked.plan, checked.args
    on_gpu = args.device.type == "cuda"
    return {
        "bishare": __version__,
        "command": sys.argv,
        "asked": request.as_dict(),
        "resumed_from": None if checked.resumed is None else str(checked.resumed.folder),
        "spec": {"name": plan.spec, "params": plan.params},
        "base": plan.base.model_dump(),
        "plan": {"sha256": plan.digest, "trainable": plan.trainable},
        "data": {name: report.as_dict() for name, report in checked.reports.items()},
        "settings": request.settings.model_dump(),
        "arguments": {k: _plain(v) for k, v in args.to_dict().items() if not k.startswith("hub_")},
        "seed": args.seed,
        "batch": {"effective": effective_batch(args), **division(args)},
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "system": platform.platform(),
            "processors": os.cpu_count(),
            "device": torch.cuda.get_device_name(args.device) if on_gpu else args.device.type,
            "threads": torch.get_num_threads(),
        },
        "started": utc_now(),
    }


def utc_now() -> str:
    """Return the time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


# Reading them ---------------------------------------------------------------------------------------


class Run(BaseModel):
    """What became of a run, in the words of a table; read off its ``run.json``.

    ``settings`` is what was asked, params of the spec included. Losses are those that were logged;
    ``held_out`` is the lowest on held-out rows. ``seconds`` is what the run took, as far as it is known.
    """

    model_config = ConfigDict(loc_by_alias=False)

    folder: str
    status: str
    started: datetime
    ended: datetime | None = Field(default=None, exclude=True)
    spec: str = Field(validation_alias=AliasPath("spec", "name"))
    params: dict[str, int | float | str] = Field(
        default={}, validation_alias=AliasPath("spec", "params"), exclude=True
    )
    settings: dict[str, Any] = Field(default={}, validation_alias="asked")
    trainable: int = Field(validation_alias=AliasPath("plan", "trainable"))
    steps: int
    first: float | None
    best: float | None
    last: float | None
    held_out: float | None
    seconds: float | None = Field(default=None, validation_alias=AliasPath("result", "seconds"))
    tokens_per_second: float | None = Field(
        default=None, validation_alias=AliasPath("result", "tokens_per_second")
    )


def find_runs(folder: Path) -> list[Path]:
    """List a folder, if it is a run's, or those that are in it, at any depth."""
    if (folder / RUN).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"**/{RUN}"))


def read_run(folder: Path) -> Run:
    """Read what became of a run, finished or not.

    Raises:
        OSError: the system refused.
        ValueError: the record is not one of bishare's.
    """
    record = json.loads((folder / RUN).read_bytes())
    log = list(_logged(folder / LOG))
    losses = [entry["loss"] for entry in log if "loss" in entry]
    found = {
        "folder": str(folder),
        "steps": max((int(entry.get("step", 0)) for entry in log), default=0),
        "first": losses[0] if losses else None,
        "best": min(losses, default=None),
        "last": losses[-1] if losses else None,
        "held_out": min((e["eval_loss"] for e in log if "eval_loss" in e), default=None),
    }
    run = Run.model_validate({**record, **found} if isinstance(record, dict) else record)
    run.settings |= run.params
    if run.seconds is None and run.ended is not None:
        run.seconds = (run.ended - run.started).total_seconds()
    return run


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read the record in a folder; None where there is no run, an empty one where it cannot be read."""
    if not (folder / RUN).is_file():
        return None
    try:
        found = json.loads((folder / RUN).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _logged(path: Path) -> Iterator[dict[str, float]]:
    """Read the numbers of each line that is whole: a run that goes on may be writing one."""
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield {
                name: value
                for name, value in entry.items()
                if isinstance(value, (int, float)) and abs(value) < _LARGEST
            }
