"""What a server is told, and the versions of vLLM that are served."""

from __future__ import annotations

import os
from typing import Any

from bishare_dsl.diagnostics import AdapterError, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes

SUPPORTED = ("0.32",)
"""The versions of vLLM that the plug-in was written for and is tested with; as in the extra ``vllm``."""

PLAN = "BISHARE_PLAN"
"""The environment variable that names the adapter folder whose plan is served in compact mode."""

PLAN_KEY = "bishare_plan"
"""The same in vLLM's ``--additional-config``."""


def plan_folder(vllm_config: Any) -> str | None:
    """Return the adapter folder that a server in compact mode takes its plan from; None in expanded mode."""
    extra = vllm_config.additional_config
    named = extra.get(PLAN_KEY) if isinstance(extra, dict) else None
    return named or os.environ.get(PLAN) or None


def check_compact(vllm_config: Any) -> None:
    """Check that a server can be in compact mode.

    Raises:
        AdapterError: a setting does not go with it (BS654).
    """
    parallel = vllm_config.parallel_config
    refused = {
        "--fully-sharded-loras": vllm_config.lora_config.fully_sharded_loras,
        "--pipeline-parallel-size above 1": parallel.pipeline_parallel_size > 1,
    }
    raise_errors(
        AdapterError,
        [codes.NOT_IN_COMPACT_MODE(setting=s) for s, given in refused.items() if given],
    )


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
