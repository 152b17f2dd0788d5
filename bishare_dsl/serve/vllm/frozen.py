"""Recreate the frozen tensors that a folder omits, from seeds or from the served weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bishare_dsl.folder.contents import StoredAdapter
from bishare_dsl.folder.fingerprint import check_reproduced
from bishare_dsl.initial.singular import singular_starts
from bishare_dsl.models.load import load_model

if TYPE_CHECKING:
    from torch import Tensor


class FrozenCache:
    """Returns adapters' tensors; consecutive adapters with equal frozen tensors share them.

    Args:
        base: the folder or name of the served model, from which weights are read on the CPU.
    """

    def __init__(self, base: str):
        self._base = base
        self._last: tuple[object, dict[str, Tensor]] = None, {}

    def tensors(self, stored: StoredAdapter) -> dict[str, Tensor]:
        """Return all tensors of an adapter by name.

        Raises:
            AdapterError: see `StoredAdapter.tensors`; or the base reproduces other tensors than were saved
                (BS699).
            ModelError: the base's weights cannot be read (BS501 to BS514).
        """
        tensors = stored.tensors(with_base=True)
        drawn = stored.config.ways("seed")
        marks = stored.config.marks
        if self._last[0] != (key := (stored.plan.digest, drawn, marks)):
            frozen = {name: tensors[name] for name in drawn}
            if marks:
                model, _ = load_model(self._base)
                frozen |= check_reproduced(marks, singular_starts(stored.plan, model))
            self._last = key, frozen
        return tensors | self._last[1]
