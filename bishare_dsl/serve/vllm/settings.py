"""What a server is told, and the versions of vLLM that are served."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from bishare_dsl.diagnostics import AdapterError, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes

SUPPORTED = ("0.31", "0.32")
"""The versions of vLLM that the plug-in was written for and is tested with; as in the extra ``vllm``."""

PLANS = "bishare_plans"
"""In vLLM's ``--additional-config``: folders of adapters whose plans are served from the start."""

SLOTS = "bishare_slots_gib"
"""The same for the GiB that the slots of all plans may take; with it plans are added while they come."""


@dataclass(frozen=True)
class Granted:
    """What compact mode was granted: plans, by folders, and bytes for slots; None for those plans alone."""

    folders: list[str]
    bytes: float | None


def granted(config: Any) -> Granted | None:
    """Return what vLLM's config grants to compact mode; None in expanded mode.

    Raises:
        AdapterError: a setting is none (BS658), or does not go with the mode (BS654).
    """
    extra = config.additional_config if isinstance(config.additional_config, dict) else {}
    given = {**os.environ, **extra}
    own = {key: given[key] for key in given if key.startswith("bishare") or key == "BISHARE_PLAN"}
    for key, value in own.items():
        problem = _problem(key, value)
        if problem:
            raise AdapterError(codes.BAD_SERVER_SETTING(setting=key, problem=problem))
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
    return Granted(own.get(PLANS, []), 2**30 * own[SLOTS] if SLOTS in own else None)


def _problem(key: str, value: Any) -> str | None:
    if key == PLANS:
        fits = isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
        return None if fits else "is not a list of adapter folders"
    if key == SLOTS:
        return None if isinstance(value, int | float) and value > 0 else "is not a number above 0"
    return f"is unknown; `--additional-config` takes `{PLANS}` and `{SLOTS}`"


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
