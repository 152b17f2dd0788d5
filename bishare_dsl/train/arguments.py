"""The Trainer's arguments, with the names and meanings of transformers and the paper's defaults.

A value may be text, as on the command line or as YAML reads ``2e-4``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from bishare_dsl.arguments import argument_types
from bishare_dsl.diagnostics import one_line, raise_errors
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.errors import TrainError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 64
"""Examples per optimizer step, over all processes."""
PER_DEVICE = 4
"""The largest number of examples in one forward pass."""
WARM_UP = 100
"""Warm-up steps of the paper's learning rate; by default at most a quarter of the run.

With a tenth of the run instead, some runs at high learning rates diverge early
(benchmarks/notes/2026-11-27-falling.md).
"""

DEFAULTS: Mapping[str, Any] = {
    # The paper's values, with transformers' AdamW.
    "learning_rate": 1e-4,
    "num_train_epochs": 1,
    # Reentrant recomputing needs inputs with gradients.
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    # The seed of `bishare compile`, so that training starts from the same tensors.
    "seed": 0,
    "logging_steps": 10,
    "logging_first_step": True,
    "include_num_input_tokens_seen": "non_padding",
    "save_steps": 100,
    "save_total_limit": 2,
    "report_to": "none",
    # Every tensor of an adapter has a gradient in every step, and a search costs time.
    "ddp_find_unused_parameters": False,
}
"""Defaults that differ from those of `TrainingArguments`."""
_FIXED: Mapping[str, Any] = {
    # A bad loss must not be hidden; rows are already encoded.
    "logging_nan_inf_filter": False,
    "remove_unused_columns": False,
}


def training_arguments(
    given: Mapping[str, Any], output_dir: str, *, evaluates: bool
) -> TrainingArguments:
    """Build the arguments of a run. Under `torchrun` and similar launchers, this joins the processes.

    Args:
        given: values by name, converted by `convert`.
        output_dir: the run's folder.
        evaluates: whether there is held-out data.

    Raises:
        TrainError: arguments conflict (BS732), DeepSpeed is not installed (BS735), sharding is requested in
            one process (BS754), or DeepSpeed's config conflicts with the arguments or would lose the
            adapter (BS755).
    """
    for name, without in (("load_best_model_at_end", False), ("eval_strategy", "no")):
        if not evaluates and given.get(name, without) != without:
            reason = f"`{name}` needs held-out data"
            help = "give `eval_data`, or `eval_split` to hold some rows out"
            raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
    if given.get("deepspeed"):
        if find_spec("deepspeed") is None:
            raise TrainError(codes.NEEDS_PACKAGE(what="`deepspeed`", package="deepspeed"))
        if "RANK" not in os.environ:
            reason = "`deepspeed` needs a launcher, for one process too"
            help = "start with `torchrun --nproc_per_node N -m bishare_dsl.cli.main train`"
            raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
    chosen = {**DEFAULTS, **given, **_FIXED}
    if "activation_checkpointing" in argument_types():  # The name since transformers 5.23.
        old, new = "gradient_checkpointing", "activation_checkpointing"
        chosen = {name.replace(old, new): value for name, value in chosen.items()}
    if not torch.accelerator.is_available():
        chosen["use_cpu"] = True
    if evaluates and "eval_strategy" not in given:
        chosen["eval_strategy"] = "steps"
        chosen.setdefault("eval_steps", chosen["save_steps"])
    with catch_refusals():
        args = TrainingArguments(output_dir=output_dir, **chosen)
        for callback in get_reporting_integration_callbacks(args.report_to or []):
            callback()
        _fill_batch(args, given)
        if args.deepspeed:
            _configure_deepspeed(args)
    if args.deepspeed_plugin is not None:
        _check_deepspeed(args)
    if args.fsdp and args.world_size == 1:
        raise TrainError(codes.NOT_SHARDED(reason="there is one process"))
    return args


def effective_batch(args: TrainingArguments) -> int:
    """Count the examples per optimizer step, over all processes."""
    at_once: int = args.per_device_train_batch_size * args.world_size
    return at_once * args.gradient_accumulation_steps


def warm_up(args: TrainingArguments, given: Mapping[str, Any], steps: int) -> int:
    """Count the warm-up steps of a run with this many steps, from the arguments."""
    return args.get_warmup_steps(steps) if "warmup_steps" in given else min(WARM_UP, steps // 4)


@contextmanager
def catch_refusals() -> Iterator[None]:
    """Convert errors that transformers raises about its arguments within a block to our own.

    Raises:
        TrainError: transformers rejects an argument (BS732).
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError, OSError) as error:
        raise TrainError(codes.BAD_COMBINATION(reason=one_line(error))) from error


def check_sharding(trainer: Trainer) -> None:
    """Check that a run gets the sharding that it requests, directly or by accelerate's config.

    Raises:
        TrainError: it would get FSDP 1 or no sharding (BS754).
    """
    wants_fsdp = trainer.args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None and wants_fsdp:
        raise TrainError(codes.NOT_SHARDED(reason="accelerate does not shard on a CPU"))
    if plugin is not None and getattr(plugin, "fsdp_version", 1) < 2:
        raise TrainError(codes.NOT_SHARDED(reason="this is FSDP 1"))


def _check_deepspeed(args: TrainingArguments) -> None:
    """Check that DeepSpeed's config leaves the run to its arguments, and keeps the adapter."""
    plugin: Any = args.deepspeed_plugin
    config: Mapping[str, Any] = plugin.deepspeed_config
    zero = config.get("zero_optimization", {})
    faults = {
        f"`{name}` replaces that of the run's arguments": f"leave `{name}` out of the config"
        for name in ("optimizer", "scheduler")
        if name in config
    }
    faults |= {
        f"`{name}` rounds the adapter": f"leave `{name}` out, and give `--dtype bfloat16` to round the base"
        for name in ("bf16", "fp16")
        # accelerate enables a missing section for `--bf16` and `--fp16`.
        if (enabled := config.get(name, {}).get("enabled", "auto")) is True
        or (enabled == "auto" and getattr(args, name))
    }
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        help = 'set `"stage3_gather_16bit_weights_on_model_save": true` in `zero_optimization`'
        faults["ZeRO-3 would not save the adapter"] = help
    raise_errors(TrainError, [codes.DEEPSPEED(reason=r, help=h) for r, h in faults.items()])


def check_processes(args: TrainingArguments, model: PreTrainedModel) -> None:
    """Check that a run has the requested processes, each with one device.

    Raises:
        TrainError: one process sees several GPUs (BS732).
    """
    if args.n_gpu > 1 and len({*(getattr(model, "hf_device_map", None) or {}).values()}) < 2:
        reason = f"one process sees {args.n_gpu} GPUs"
        help = "start with `torchrun --nproc_per_node N`, or show one: CUDA_VISIBLE_DEVICES=0"
        raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
    # `accelerate launch --cpu --num_processes 2` sets a rendezvous address, but starts one process.
    launched = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if launched and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        reason = "several processes were asked for, and accelerate has started one"
        help = "start with `torchrun --nproc_per_node N -m bishare_dsl.cli.main train`"
        raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))


def _configure_deepspeed(args: TrainingArguments) -> None:
    """Put the arguments into DeepSpeed's config, where it has ``"auto"``."""
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    config = args.hf_deepspeed_config = HfTrainerDeepSpeedConfig(args.deepspeed)
    config.trainer_config_process(args)
    plugin: Any = type(args.deepspeed_plugin)
    args.deepspeed_plugin = plugin(hf_ds_config=config)


def _fill_batch(args: TrainingArguments, given: Mapping[str, Any]) -> None:
    """Choose unset arguments so that an optimizer step sees `BATCH` examples."""
    size = given.get("per_device_train_batch_size")
    steps = given.get("gradient_accumulation_steps")
    if any(count is not None and count < 1 for count in (size, steps)):
        raise ValueError("a batch has one example at least")
    if size is None:
        most = PER_DEVICE if steps is None else BATCH
        size = max(1, min(most, round(BATCH / (args.world_size * (steps or 1)))))
    if steps is None:
        steps = max(1, round(BATCH / (size * args.world_size)))
    args.per_device_train_batch_size, args.gradient_accumulation_steps = size, steps
