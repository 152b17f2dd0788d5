"""The record of a run, ``run.json``: what it was made of, and what became of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.plan import Plan
from bishare_dsl.train.arguments import effective_batch
from bishare_dsl.train.history import RUN
from bishare_dsl.version import __version__
from bishare_dsl.writing import replace_file

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from bishare_dsl.train.check import CheckedRun
    from bishare_dsl.train.data import DataReport
    from bishare_dsl.train.request import Request

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
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
