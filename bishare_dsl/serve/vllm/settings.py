"""The settings of a server, and the supported versions of vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveFloat, ValidationError

from bishare_dsl.diagnostics import AdapterError, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes

SUPPORTED = ("0.31", "0.32")
"""The versions of vLLM that the tests were run with."""

EXPERIMENTAL = ("0.33", "0.34")
"""The versions of vLLM whose sources were compared with those, and which were not run."""


class Granted(BaseModel):
    """The settings of compact mode in vLLM's ``--additional-config``.

    Attributes:
        bishare_plans: adapter folders whose plans get slots at the start.
        bishare_slots_gib: the memory limit of the slots of all plans; if set, plans are added on arrival.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bishare_plans: list[str] = []
    bishare_slots_gib: PositiveFloat | None = None


def granted(config: Any) -> Granted | None:
    """Return the settings of compact mode from vLLM's config; None without it.

    Raises:
        AdapterError: a setting is invalid (BS658) or conflicts with the mode (BS654).
    """
    extra = config.additional_config if isinstance(config.additional_config, dict) else {}
    own = {key: value for key, value in extra.items() if key.startswith("bishare")}
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
        setting = wrong["loc"][0]
        problem = wrong["msg"]
        raise AdapterError(codes.BAD_SERVER_SETTING(setting=setting, problem=problem)) from error


def unsupported() -> str | None:
    """Return why compact mode does not work in this version of vLLM, or None."""
    from vllm import __version__

    known = (*SUPPORTED, *EXPERIMENTAL)
    if _is_one_of(__version__, known):
        return None
    return (
        f"bishare's compact mode is for vLLM {known[0]} to {known[-1]}, and this is {__version__}: those in "
        "VLLM_LORA_RESOLVER_CACHE_DIR are served as plain LoRAs; convert others: `bishare convert --for vllm`"
    )


def experimental() -> str | None:
    """Return a warning if this version of vLLM was read and not run, or None."""
    from vllm import __version__

    if not _is_one_of(__version__, EXPERIMENTAL):
        return None
    return (
        f"bishare's plug-in is experimental in vLLM {__version__}: its sources were compared with those of "
        f"{SUPPORTED[-1]}, and no test was run with it; check an adapter with `bishare verify`"
    )


def _is_one_of(version: str, known: Sequence[str]) -> bool:
    return version.startswith(tuple(f"{prefix}." for prefix in known))
