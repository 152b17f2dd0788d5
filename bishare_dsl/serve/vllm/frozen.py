"""Frozen tensors that a folder leaves out: drawn, or made of the weights that are served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bishare_dsl.adapter.contents import StoredAdapter
from bishare_dsl.adapter.recipes import check_reproduced
from bishare_dsl.adapter.singular import singular_starts
from bishare_dsl.models.load import load_model

if TYPE_CHECKING:
    from torch import Tensor


class FrozenCache:
    """The tensors of adapters on one base: one after the other, they have equal frozen tensors in common.

    Args:
        base: the folder or the name of what is served. Its weights are read from there, on the CPU.
    """

    def __init__(self, base: str):
        self._base = base
        self._last: tuple[object, dict[str, Tensor]] = None, {}

    def tensors(self, stored: StoredAdapter) -> dict[str, Tensor]:
        """Return the tensors of an adapter by name, all of them.

        Raises:
            AdapterError: as `StoredAdapter.tensors`; or the base gives others than were saved (BS699).
            ModelError: the base's weights cannot be read (BS501 to BS514).
        """
        found = stored.tensors(with_base=True)
        drawn, marks = stored.config.drawn, stored.config.marks
        if self._last[0] != (key := (stored.plan.digest, drawn, marks)):
            frozen = {name: found[name] for name in drawn}
            if marks:
                model, _ = load_model(self._base)
                frozen |= check_reproduced(marks, singular_starts(stored.plan, model))
            self._last = key, frozen
        return found | self._last[1]
