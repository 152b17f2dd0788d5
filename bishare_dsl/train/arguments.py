"""The Trainer's arguments, with the names and meanings of transformers and the paper's defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments

from bishare_dsl.diagnostics import one_line
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.argument_types import argument_types
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
    # Reentrant recomputing needs inputs with gradients.
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}


def training_arguments(
    given: Mapping[str, Any], output_dir: str, *, evaluates: bool
) -> TrainingArguments:
    """Build the arguments of a run. Under `torchrun` and similar launchers, this joins the processes.

    Args:
        given: values by name, of the types of `TrainingArguments`.
        output_dir: the run's folder.
        evaluates: whether there is held-out data.

    Raises:
        TrainError: arguments conflict (BS732).
    """
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
        if args.deepspeed_plugin is not None:
            raise ValueError("DeepSpeed is for TRL's `SFTTrainer`; here FSDP2 shards the base")
        if args.fsdp and args.world_size == 1:
            raise ValueError("`fsdp` shards over several processes: start them by `torchrun`")
        if args.save_total_limit == 1:
            args.save_total_limit = 2  # Trainer removes the last one before the next one is sealed.
        _fill_batch(args, given)
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


def check_processes(args: TrainingArguments, model: PreTrainedModel) -> None:
    """Check that each process has one device.

    Raises:
        TrainError: one process sees several GPUs (BS732).
    """
    if args.n_gpu > 1 and len({*(getattr(model, "hf_device_map", None) or {}).values()}) < 2:
        reason = f"one process sees {args.n_gpu} GPUs"
        help = "start with `torchrun --nproc_per_node N`, or show one: CUDA_VISIBLE_DEVICES=0"
        raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))


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
