"""The Trainer's arguments: the names and meanings of transformers and TRL, the paper's recipe by default.

A value may be text, as on the command line and as YAML reads ``2e-4``; it is converted as transformers does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from enum import Enum, EnumMeta
from functools import cache
from math import ceil, inf
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from transformers import HfArgumentParser, TrainingArguments
from trl import SFTConfig

from bishare_dsl.diagnostics import nearest, one_line
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.record import effective_batch

if TYPE_CHECKING:
    from transformers import Trainer

BATCH = 64
"""Examples in an optimizer step, of all processes together."""
PER_DEVICE = 4
"""Examples that go through the model at once, at most."""

DEFAULTS: Mapping[str, Any] = {
    # The paper's, with transformers' AdamW; by `warm_up_steps` the tenth is no more steps than the paper has.
    "learning_rate": 1e-4,
    "warmup_steps": 0.1,
    "num_train_epochs": 1,
    # Where TRL has others than transformers; the loss of experts' routing is in none of the paper's runs.
    "bf16": False,
    "gradient_checkpointing": False,
    "router_aux_loss_coef": 0.0,
    # That of `bishare compile`: with it, training starts from the very same tensors.
    "seed": 0,
    "logging_steps": 10,
    "logging_first_step": True,
    "save_steps": 100,
    "save_total_limit": 2,
    "report_to": "none",
    # Every tensor of an adapter has a gradient in every step, and looking for those without takes time.
    "ddp_find_unused_parameters": False,
}
"""Where they are not SFTConfig's own."""
WARM_UP = 100
"""Steps over which the paper's learning rate rises."""
_OF_TRL = ("loss_type", "router_aux_loss_coef")

_TINY = 5e-324
# What they are in every run, and why nothing else is taken.
_FIXED: Mapping[str, tuple[bool, str]] = {
    "auto_find_batch_size": (
        False,
        "it would change the effective batch; set `per_device_train_batch_size`",
    ),
    "deepspeed": (False, "its checkpoints hold the base too; shard the base with `fsdp` instead"),
    "disable_tqdm": (True, "the progress bar is bishare's own; `--quiet` leaves it out"),
    "enable_jit_checkpoint": (False, "SIGTERM saves a checkpoint without it"),
    "logging_nan_inf_filter": (False, "it would hide the first loss that is not a number"),
    "push_to_hub": (False, "`bishare push` puts a finished folder on the Hub"),
    "remove_unused_columns": (False, "rows have become examples before the Trainer sees them"),
    "save_on_each_node": (False, "one process writes, to a folder that all of them see"),
    "use_liger_kernel": (False, "its kernels replace forwards that the adapter is part of"),
}
_BOUNDS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (0, 1)),
    **dict.fromkeys(("adam_epsilon", "learning_rate", "max_grad_norm", "weight_decay"), (0, inf)),
    **dict.fromkeys(
        ("eval_steps", "logging_steps", "num_train_epochs", "save_steps"), (_TINY, inf)
    ),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (1, inf)),
    "gradient_accumulation_steps": (1, inf),
    "max_steps": (-1, inf),
    "seed": (0, 2**32 - 1),
}
# It was a list of words once, and takes true or false now; which its type does not say.
_SWITCHES = ("fsdp",)
# What transformers called it until 5.23 or so, and since.
_OLD, _NEW = "gradient_checkpointing", "activation_checkpointing"


class Arguments(SFTConfig):  # type: ignore[misc]
    """SFTConfig, for a process that trains on one GPU.

    Attributes:
        kept_elsewhere: whether accelerate brings the model's weights to the device itself.
    """

    kept_elsewhere = False

    @property
    def n_gpu(self) -> int:
        """One at most: `DataParallel` copies modules away from the tensors they share."""
        return min(int(super().n_gpu), 1)

    @property
    def place_model_on_device(self) -> bool | None:
        """As transformers has it, unless the weights come by themselves."""
        placed: bool | None = super().place_model_on_device
        return False if self.kept_elsewhere else placed


def argument_names() -> tuple[str, ...]:
    """List the names of all arguments."""
    return tuple(_fields())


def describe_arguments() -> list[tuple[str, str, str]]:
    """List each argument that is not ours: its name, its default here, what transformers says about it."""
    ours = {
        **DEFAULTS,
        _NEW: False,
        "per_device_train_batch_size": PER_DEVICE,
        "gradient_accumulation_steps": 16,
        "warmup_steps": f"a tenth, at most {WARM_UP}",
    }
    rows = []
    for name in argument_names():
        if name in (*_FIXED, "output_dir", "resume_from_checkpoint"):
            continue
        field = _fields()[name]
        default = ours.get(name, "" if field.default is MISSING else field.default)
        default = default.value if isinstance(default, Enum) else default
        said = " ".join(str(field.metadata.get("help", "")).split())
        rows.append((name, "" if default is None else str(default), said))
    return rows


def is_flag(name: str) -> bool:
    """Tell whether an argument may stand on the command line without a value: it is true or false."""
    _parser()  # It resolves the types.
    return name in _SWITCHES or _fields()[name].type in (bool, bool | None)


def convert(name: str, value: Any) -> Any:
    """Convert a value to what `TrainingArguments` wants.

    Raises:
        TrainError: it is none of that argument (BS731).
    """
    if isinstance(value, Enum):
        value = value.value
    if not isinstance(value, (bool, int, float, str)):
        return value
    parser = _parser()
    # YAML reads a bare `no` as false.
    no = value is False and isinstance(_fields()[name].type, EnumMeta)
    text = "no" if no else str(value)
    if name in _SWITCHES and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        found = getattr(parser.parse_args([f"--{name}={text}"]), name)
        if text.startswith("{"):
            found = json.loads(text)
        if (bounds := _BOUNDS.get(name)) and not bounds[0] <= found <= bounds[1]:
            raise _RefusedError(f"it must be {_between(*bounds)}")
    except (_RefusedError, ValueError) as error:
        reason, help = str(error), None
        if choices := re.findall(r"'(\w+)'", reason.partition("(choose from")[2]):
            reason, help = "it is not one of its words", nearest(text, choices)
            help = help or f"one of {', '.join(f'`{word}`' for word in choices[:12])}"
        problem = codes.WRONG_VALUE(name=name, value=value, reason=reason, help=help)
        raise TrainError(problem) from None
    return found


def training_arguments(given: Mapping[str, Any], output_dir: str, *, evaluates: bool) -> Arguments:
    """Make the arguments of a run; under `torchrun` and the like this joins the processes.

    Args:
        given: by name, each converted by `convert`.
        output_dir: of the run.
        evaluates: whether there is held-out data.

    Raises:
        TrainError: arguments are not supported (BS733), do not go together (BS732), or ask one process to
            shard the model (BS754).
    """
    problems = [
        codes.REFUSED(name=name, reason=reason)
        for name, (value, reason) in _FIXED.items()
        if bool(given.get(name, value)) != value
    ]
    for name, without in (("load_best_model_at_end", False), ("eval_strategy", "no")):
        if not evaluates and given.get(name, without) != without:
            reason = f"`{name}` needs held-out data"
            help = "give `eval_data`, or `eval_split` to hold some rows out"
            problems.append(codes.BAD_COMBINATION(reason=reason, help=help))
    if problems:
        raise TrainError(problems)
    fixed = {name: value for name, (value, _) in _FIXED.items() if name in _fields()}
    chosen = {**DEFAULTS, **given, **fixed}
    if not torch.accelerator.is_available():
        chosen["use_cpu"] = True
    if evaluates and "eval_strategy" not in given:
        chosen["eval_strategy"] = "steps"
        chosen.setdefault("eval_steps", chosen["save_steps"])
    with catch_refusals():
        args = Arguments(
            output_dir=output_dir,
            dataset_kwargs={"skip_prepare_dataset": True},  # Rows have become examples before.
            **_checkpointing(chosen),
        )
    if args.fsdp and args.world_size == 1:
        help = "start several with `torchrun` or `accelerate launch`"
        raise TrainError(codes.NOT_SHARDED(reason="there is one process", help=help))
    _check_reporting(args)
    _fill_batch(args, given)
    return args


def count_steps(args: TrainingArguments, examples: int) -> int:
    """Count the optimizer steps of a run on so many examples."""
    if args.max_steps > 0:
        return int(args.max_steps)
    each: int = ceil(examples / effective_batch(args))
    return ceil(args.num_train_epochs * each)


def warm_up_steps(steps: int, recipe: str) -> int:
    """Count the steps over which the rate rises, where nothing else is said."""
    return WARM_UP if recipe == "paper" else min(WARM_UP, steps // 10)


@contextmanager
def catch_refusals() -> Iterator[None]:
    """Let transformers look at its arguments in a block, and turn what it refuses into our own errors.

    Raises:
        TrainError: it does not like them (BS732).
    """
    try:
        yield
    except _WHAT_THEY_RAISE as error:
        reason = one_line(error)
        raise TrainError(codes.BAD_COMBINATION(reason=reason)) from error


def check_sharding(trainer: Trainer) -> None:
    """Check that a run which asks for FSDP, itself or by the config of accelerate, gets FSDP2.

    Raises:
        TrainError: it would not (BS754), or gets DeepSpeed (BS733).
    """
    if trainer.is_deepspeed_enabled:
        reason = "its checkpoints hold the base too; let FSDP2 shard the base instead"
        raise TrainError(codes.REFUSED(name="deepspeed", reason=reason))
    asked = trainer.args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None and asked:
        alone = trainer.args.world_size == 1
        reason = "there is one process" if alone else "accelerate does not shard on a CPU"
        help = "without FSDP each of several processes has the whole model (DDP)"
        raise TrainError(codes.NOT_SHARDED(reason=reason, help=help))
    if plugin is not None and getattr(plugin, "fsdp_version", 1) < 2:
        help = (
            "`fsdp_version: 2` in the config of accelerate, or `--fsdp_config '{\"version\": 2}'`"
        )
        raise TrainError(codes.NOT_SHARDED(reason="this is FSDP 1", help=help))


def _fill_batch(args: TrainingArguments, given: Mapping[str, Any]) -> None:
    """Let what was not given follow, so that an optimizer step sees `BATCH` examples."""
    size = given.get("per_device_train_batch_size")
    steps = given.get("gradient_accumulation_steps")
    if size is None and steps is None:
        size = max(1, min(PER_DEVICE, BATCH // args.world_size))
    if steps is None:
        steps = max(1, round(BATCH / (size * args.world_size)))
    if size is None:
        size = max(1, round(BATCH / (steps * args.world_size)))
    args.per_device_train_batch_size, args.gradient_accumulation_steps = size, steps


def _checkpointing(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same by the name that this transformers uses, non-reentrant if nothing else is asked for.

    The reentrant kind cannot be used with DDP and shared tensors: "marked ready twice".
    """
    name = _NEW if _NEW in _fields() else _OLD
    renamed = {k.replace(_OLD, name): v for k, v in chosen.items()}
    kwargs = renamed.get(f"{name}_kwargs") or {}
    return {**renamed, f"{name}_kwargs": {"use_reentrant": False, **kwargs}}


def _check_reporting(args: TrainingArguments) -> None:
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    for name in args.report_to or ():
        try:
            for callback in get_reporting_integration_callbacks([name]):
                callback()
        except ValueError as error:
            known = re.findall(r"\w+", str(error).partition("only")[2].partition("are supp")[0])
            problem = codes.WRONG_VALUE(
                name="report_to", value=name, reason="no such thing", help=nearest(name, known)
            )
            raise TrainError(problem) from error
        except (RuntimeError, ImportError) as error:
            what, help = f"`report_to {name}`", f"pip install {name}"
            raise TrainError(codes.NEEDS_PACKAGE(what=what, package=name, help=help)) from error


def _between(least: float, most: float) -> str:
    if most < inf:
        return f"from {least:g} to {most:g}"
    return "above 0" if least == _TINY else f"at least {least:g}"


@cache
def _fields() -> dict[str, Field[Any]]:
    known = {*_OF_TRL, *(field.name for field in fields(TrainingArguments))}
    return {f.name: f for f in fields(Arguments) if f.init and f.name in known}


_WHAT_THEY_RAISE = (ValueError, TypeError, KeyError, ImportError, RuntimeError, OSError)


# argparse names the function that reads a value; this is what it reads.
_MEANT = {
    "int": "it is a whole number",
    "float": "it is a number",
    "Truthy": "it is true or false",
}


class _RefusedError(Exception):
    """What argparse would have printed before it left."""


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        reason = re.sub(r"^argument [^:]*: ", "", message)
        kind = re.match(r"invalid (\w+) value|(Truthy) value", reason)
        raise _RefusedError(_MEANT.get(kind[1] or kind[2], reason) if kind else reason)


@cache
def _parser() -> _Parser:
    return _Parser(cast("Any", Arguments), add_help=False, allow_abbrev=False)
