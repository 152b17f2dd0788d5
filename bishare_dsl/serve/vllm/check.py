"""Check that an adapter can be served before its request reaches the engine.

vLLM rereads an evicted adapter in the middle of a step, where a damaged folder would stop the engine. So
each request first checks the files. Files unchanged since the last successful check are not read again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.serve.vllm.base import compare_base
from bishare_dsl.serve.vllm.folder import Stamp, is_ours, read_any, stamp_of
from bishare_dsl.serve.vllm.plain import plain_folder
from bishare_dsl.serve.vllm.plans import Plans
from bishare_dsl.serve.vllm.settings import granted


class _Server:
    """The base and plans of a server, and the adapter folders that passed the check."""

    def __init__(self, config: Any):
        settings = granted(config)
        self.plans = None if settings is None else Plans(config, settings)
        self.model: str = config.model_config.model
        self.good: dict[str, Stamp] = {}


_servers: dict[str, _Server] = {}


def start_checks(config: Any) -> None:
    """Register a server for `check_folder` by vLLM's config."""
    _servers[config.model_config.model] = _Server(config)


def check_folder(name: str, folder: str | Path, base: str) -> str:
    """Check that an adapter of bishare or PEFT can be served, and return the folder to serve it from.

    Without compact mode, that is a plain LoRA. Other plain LoRAs are left to vLLM. An adapter of another base
    of the same shapes is served with a warning in the log.

    Args:
        name: the name of the adapter.
        folder: a local folder, also below ``~``; vLLM handles folders that never existed.
        base: the name or the folder of the served model.

    Raises:
        ValueError: it cannot be served; vLLM's server returns this error.
    """
    folder = os.path.expanduser(folder)  # noqa: PTH111 - it may be a name on the Hub
    # A resolver knows the name that the model is served by.
    server = _servers.get(base) or next(iter(_servers.values()))
    stamp = stamp_of(folder)
    if server.good.get(folder) == stamp or not (any(stamp) or folder in server.good):
        return folder
    try:
        if server.plans is None:
            if not is_ours(folder):
                return folder
            place = plain_folder(folder, server.model)
            compare_base(name, folder, server.model)
            return place
        # Tensors computed from the base's weights are created in the workers.
        read = read_any(folder, server.plans.base, lambda stored: stored.tensors(with_base=True))
        read.tensors()
        server.plans.number_of(folder, read)
        if is_ours(folder):
            compare_base(name, folder, server.model)
    except (BishareError, OSError) as error:
        raise ValueError(f"LoRA adapter '{name}' cannot be served: {error}") from error
    server.good[folder] = stamp
    return folder
