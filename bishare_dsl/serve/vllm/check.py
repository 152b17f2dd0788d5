"""Check that an adapter can be served before its request reaches the engine.

vLLM rereads an evicted adapter in the middle of a step, where a damaged folder would stop the engine. So
each request first checks the files. Files unchanged since the last successful check are not read again.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from bishare_dsl.diagnostics import BishareError, one_line
from bishare_dsl.export import peft
from bishare_dsl.models.inspect import inspect_config
from bishare_dsl.serve.vllm.folder import Stamp, is_ours, read_any, stamp_of
from bishare_dsl.serve.vllm.plans import Plans
from bishare_dsl.serve.vllm.settings import granted

if TYPE_CHECKING:
    from bishare_dsl.models.site import Architecture


class _Server:
    """The base and plans of a server, and the adapter folders that passed the check."""

    def __init__(self, config: Any):
        given, self._config = granted(config), config
        self.plans = None if given is None else Plans(config, given)
        self.good: dict[str, Stamp] = {}

    @cached_property
    def base(self) -> Architecture:
        """The shapes of the base; computed only for bishare's adapters, since some models have none."""
        return inspect_config(self._config.model_config.hf_config)


_servers: dict[str, _Server] = {}


def start_checks(config: Any) -> None:
    """Register a server for `check_folder` by vLLM's config."""
    _servers[config.model_config.model] = _Server(config)


def check_folder(name: str, folder: str | Path, base: str) -> None:
    """Check that an adapter of bishare or PEFT can be served from its folder.

    Args:
        name: the name of the adapter.
        folder: a local folder, also below ``~``; vLLM handles folders that never existed.
        base: the name or the folder of the served model.

    Raises:
        ValueError: it cannot be served; vLLM's server returns this error.
    """
    folder = os.path.expanduser(folder)  # noqa: PTH111 - it may be a name on the Hub
    server, stamp = _servers[base], stamp_of(folder)
    if server.good.get(folder) == stamp or not (any(stamp) or folder in server.good):
        return
    try:
        if server.plans is None and not is_ours(folder):
            if not (file := Path(folder, peft.TENSORS)).is_file():
                raise OSError(f"{file} is no file")  # Opening a pipe would block.
            with safe_open(file, framework="pt"):
                pass  # Its header is valid. vLLM reads the rest.
        else:
            # Tensors computed from the base's weights are created in the workers.
            read = read_any(
                folder,
                server.base,
                lambda stored: stored.tensors(with_base=True),
                compact=server.plans is not None,
            )
            read.tensors()
            if server.plans is not None:
                server.plans.number_of(folder, read)
    except (BishareError, OSError, SafetensorError) as error:
        reason = error if isinstance(error, BishareError) else one_line(error)
        raise ValueError(f"LoRA adapter '{name}' cannot be served: {reason}") from error
    server.good[folder] = stamp
