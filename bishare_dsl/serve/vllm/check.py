"""Whether an adapter can be served, asked before its request reaches the engine.

vLLM reads an adapter in the middle of a step when it has left the host's cache, and a folder that is damaged
by then would stop the engine. So each request looks at the files first; those that are as they were when they
were found good are not read again.
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
    """What the adapters of a server are held against, and which of them were found good."""

    def __init__(self, config: Any):
        given, self._config = granted(config), config
        self.plans = None if given is None else Plans(config, given)
        self.good: dict[str, Stamp] = {}

    @cached_property
    def base(self) -> Architecture:
        """The shapes of the base: asked for its adapters of bishare alone, for not every model has them."""
        return inspect_config(self._config.model_config.hf_config)


_servers: dict[str, _Server] = {}


def start_checks(config: Any) -> None:
    """Let `check_folder` know a server by vLLM's config."""
    _servers[config.model_config.model] = _Server(config)


def check_folder(name: str, folder: str | Path, base: str) -> None:
    """Check that an adapter, bishare's or PEFT's, can be served as it stands in its folder.

    Args:
        name: of the adapter.
        folder: one of this machine; what is not there and never was is left to vLLM.
        base: the name or the folder of what is served.

    Raises:
        ValueError: it cannot be served; vLLM's server makes an answer of that.
    """
    server, key, stamp = _servers[base], os.fspath(folder), stamp_of(folder)
    if server.good.get(key) == stamp or not (any(stamp) or key in server.good):
        return
    try:
        if server.plans is None and not is_ours(folder):
            if not (file := Path(folder, peft.TENSORS)).is_file():
                raise OSError(f"{file} is no file")  # A pipe would be waited for.
            with safe_open(file, framework="pt"):
                pass  # Its header fits its size. The rest is vLLM's to read.
        else:
            # What the base's weights give is made where they are.
            read = read_any(folder, server.base, lambda s: s.tensors(with_base=True))
            read.tensors()
            if server.plans is not None:
                server.plans.number_of(folder, read)
    except (BishareError, OSError, SafetensorError) as error:
        reason = error if isinstance(error, BishareError) else one_line(error)
        raise ValueError(f"LoRA adapter '{name}' cannot be served: {reason}") from error
    server.good[key] = stamp
