"""Add adapters to a library without changing its common tensors or its other adapters."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bishare_dsl.adapter.card import write_card
from bishare_dsl.adapter.config import attribute_in
from bishare_dsl.adapter.contents import digest_of, entries_in, own_file
from bishare_dsl.adapter.files import CONFIG, names_in, pack, read_adapter, writing
from bishare_dsl.plan.names import attribute
from bishare_dsl.writing import new_folder, replace_file

if TYPE_CHECKING:
    import torch


def add_to_library(
    folder: Path,
    adapters: Mapping[str, Mapping[str, torch.Tensor]],
    out: Path | None = None,
) -> Path:
    """Add adapters to a library, replacing those with the same names.

    The config is replaced last, in one step. If the process is killed, the library is unchanged, except
    for an adapter that was being replaced.

    Args:
        folder: the library.
        adapters: each adapter's tensors by name, by the name of the adapter. Tensors shared by the
            library are ignored.
        out: write a copy of the library to this folder instead of changing the original.

    Returns:
        The folder that was written.

    Raises:
        AdapterError: the library is damaged, or the system refuses (BS616).
    """
    if out is not None:
        with writing(out), new_folder(out) as new:
            shutil.copytree(folder, new, symlinks=True, dirs_exist_ok=True)
            _add(new, adapters)
        return out
    with writing(folder):
        _add(folder, adapters)
    return folder


def _add(folder: Path, adapters: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    from safetensors.torch import save

    stored = read_adapter(f"{folder}#{names_in(folder)[0]}")
    config, plan = stored.config, stored.plan
    common = {attribute(name) for name in plan.common}
    digests = dict(config.adapters or {})
    for name, tensors in adapters.items():
        values, _, _ = pack(plan, tensors, config.spec, seed=config.seed, dtype=config.rounded)
        own = {key: value for key, value in values.items() if attribute_in(key) not in common}
        content = save(own, {"format": "pt"})
        replace_file(folder / own_file(name), content)
        digests[name] = digest_of(entries_in(content))
    config = config.model_copy(update={"adapters": digests})
    replace_file(folder / CONFIG, config.text().encode())
    write_card(folder, plan, config.spec, tuple(digests))
