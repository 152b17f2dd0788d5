"""Find adapters by name in a folder, without a list of adapters."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from bishare_dsl.folder.config import NAME
from bishare_dsl.folder.contents import own_file
from bishare_dsl.folder.files import place_of
from bishare_dsl.serve.vllm.folder import is_ours


class FolderResolver(LoRAResolver):
    """Finds bishare's adapters at ``root/NAME``; vLLM's own resolver handles others.

    If ``root`` is a library, ``NAME`` is one of its adapters: ``LIBRARY#NAME``.

    Args:
        root: the folder of adapters.
        place: returns the folder to serve an adapter from, by its name, its folder and the base.
    """

    def __init__(self, root: str, place: Callable[[str, Path, str], str]):
        self._root = Path(root).resolve()
        self._place = place
        if not self._root.is_dir():
            raise ValueError(f"VLLM_LORA_RESOLVER_CACHE_DIR is not a folder: {root}")

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """Return the request for an adapter, or None if there is none with this name.

        Report errors here, because vLLM only logs a worker's errors.

        Raises:
            ValueError: it cannot be served; vLLM's server returns this error.
        """
        if "\0" in lora_name:  # Invalid in a file name.
            return None
        folder = self._folder(lora_name)
        library, member = place_of(folder)
        inside = self._root in library.parents or (library == self._root and member is not None)
        if not inside or not is_ours(folder):
            return None
        place = await asyncio.to_thread(self._place, lora_name, folder, base_model_name)
        # vLLM assigns the actual number.
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=place)

    def _folder(self, name: str) -> Path:
        # Look for the file, because the config of a library may list 10,000 names.
        if re.fullmatch(NAME, name) and (self._root / own_file(name)).is_file():
            return self._root.with_name(f"{self._root.name}#{name}")
        return (self._root / name).resolve()
