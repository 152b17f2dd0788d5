"""Whether several processes share the model as they were asked to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.errors import TrainError

if TYPE_CHECKING:
    from transformers import Trainer


def check_sharding(trainer: Trainer) -> None:
    """See that a run which asks for FSDP, itself or by the config of accelerate, gets FSDP2.

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
