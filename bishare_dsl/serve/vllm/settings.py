"""What a server is told, and the versions of vLLM that are served."""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveFloat, ValidationError

from bishare_dsl.diagnostics import AdapterError, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes

SUPPORTED = ("0.31", "0.32")
"""The versions of vLLM that the plug-in was written for and is tested with; as in the extra ``vllm``."""


class Granted(BaseModel):
    """What vLLM's ``--additional-config`` grants to compact mode.

    Attributes:
        bishare_plans: adapter folders whose plans are served from the start.
        bishare_slots_gib: what the slots of all plans may take; with it plans are added while they come.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bishare_plans: list[str] = []
    bishare_slots_gib: PositiveFloat | None = None


def granted(config: Any) -> Granted | None:
    """Return what vLLM's config grants to compact mode; None in expanded mode.

    Raises:
        AdapterError: a setting is none (BS658), or does not go with the mode (BS654).
    """
    extra = config.additional_config if isinstance(config.additional_config, dict) else {}
    given = {**os.environ, **extra}
    own = {key: given[key] for key in given if key.startswith("bishare") or key == "BISHARE_PLAN"}
    if not own:
        return None
    parallel = config.parallel_config
    refused = {
        "--fully-sharded-loras": config.lora_config.fully_sharded_loras,
        "--pipeline-parallel-size above 1": parallel.pipeline_parallel_size > 1,
    }
    raise_errors(
        AdapterError,
        [codes.NOT_IN_COMPACT_MODE(setting=s) for s, given in refused.items() if given],
    )
    try:
        return Granted.model_validate(own)
    except ValidationError as error:
        wrong = error.errors()[0]
        setting, problem = wrong["loc"][0], wrong["msg"]
        raise AdapterError(codes.BAD_SERVER_SETTING(setting=setting, problem=problem)) from error


def unsupported() -> str | None:
    """Say why this version of vLLM is not served; None where it is."""
    from vllm import __version__

    if __version__.startswith(tuple(f"{version}." for version in SUPPORTED)):
        return None
    versions = " and ".join(SUPPORTED)
    return (
        f"bishare does not serve adapters here: its plug-in is for vLLM {versions}, and this is "
        f"{__version__}. Install `bishare[vllm]`, or export adapters for PEFT: `bishare export`."
    )
