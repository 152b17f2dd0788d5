"""Plain LoRAs of adapter folders, for servers without compact mode and for any version of vLLM.

They are written once into a cache, which may be deleted while no server runs. Nothing of vLLM is used.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from bishare_dsl.convert.export import export_adapter
from bishare_dsl.diagnostics import AdapterError, BishareError
from bishare_dsl.diagnostics.codes.adapter import FOLDER_EXISTS
from bishare_dsl.models import architecture_of
from bishare_dsl.models.load import meta_model
from bishare_dsl.resources import cache_folder
from bishare_dsl.serve.vllm.base import compare_base
from bishare_dsl.serve.vllm.folder import read_for, stamp_of
from bishare_dsl.serve.vllm.frozen import FrozenCache
from bishare_dsl.version import __version__


def plain_folder(folder: str | Path, base: str) -> str:
    """Return the folder of an equal plain LoRA, after writing it if the adapter is new or has changed.

    Args:
        folder: a folder of bishare, or ``LIBRARY#NAME``.
        base: the name or the folder of the served model.

    Raises:
        AdapterError: see `read_for` and `export_adapter`.
        ModelError: the base cannot be found.
    """
    version = repr((str(Path(folder).absolute()), stamp_of(folder), base, __version__))
    place = cache_folder() / "vllm" / hashlib.sha256(version.encode()).hexdigest()[:32]
    if not place.is_dir():
        model = meta_model(base)
        stored = read_for(folder, architecture_of(model))
        try:
            export_adapter(place, stored.plan, FrozenCache(base).tensors(stored), model, "vllm")
        except AdapterError as error:  # Another process may have written it meanwhile.
            if error.problems[0].code != FOLDER_EXISTS.code:
                raise
    return str(place)


def served_folder(name: str, folder: str | Path, base: str) -> str:
    """Return the `plain_folder` of an adapter by its name, for a resolver.

    Raises:
        ValueError: it cannot be served; vLLM's server returns this error.
    """
    try:
        place = plain_folder(folder, base)
        compare_base(name, folder, base)
        return place
    except (BishareError, OSError) as error:
        raise ValueError(f"LoRA adapter '{name}' cannot be served: {error}") from error
