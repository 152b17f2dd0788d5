"""Adding adapters to a library: what it shares stays, and so do the files of the adapters that are there."""

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
    """Add adapters to a library, or replace those of the same names.

    The config is replaced last and in one step, so that a kill leaves the library as it was, but for an
    adapter that is being replaced.

    Args:
        folder: the library.
        adapters: the tensors of each by their names in the plan, by the name of the adapter. Those that the
            library shares are left out.
        out: write a copy of the library there, and leave this one as it is.

    Returns:
        The folder that has been written.

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
