"""The tokens of a batch by the slots of their adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Adapters that have about as many tokens each: ``R`` rows of ``n`` tokens, the shorter ones padded.

    Attributes:
        slots: of the rows: a slice where they lie side by side in the bank, so that nothing is copied.
        tokens: ``(R * n,)``, which token stands where; None where they are the whole batch, in order.
        kept: the places in ``tokens`` that are not padding; None where there is none.
        length: ``n``.
    """

    slots: slice | Tensor
    tokens: Tensor | None
    kept: Tensor | None
    length: int
    views: dict[object, dict[str, Tensor]] = field(default_factory=dict, compare=False)
    """What has been looked up in the bank's slice, which stays where it is."""

    def rows(self, x: Tensor) -> Tensor:
        """Return the group's tokens of ``x (tokens, d)``, ``(R, n, d)``."""
        found = x if self.tokens is None else x.index_select(0, self.tokens)
        return found.unflatten(0, (-1, self.length))

    def add(self, output: Tensor, delta: Tensor, scale: float) -> None:
        """Add ``scale * delta (R, n, d)`` to the group's tokens of ``output (tokens, d)``, in place."""
        delta = delta.flatten(0, 1)
        if self.tokens is None:
            output.add_(delta, alpha=scale)
        elif self.kept is None:
            output.index_add_(0, self.tokens, delta, alpha=scale)
        else:
            output.index_add_(0, self.tokens[self.kept], delta[self.kept], alpha=scale)


def group_tokens(slots: Sequence[int], device: torch.device | str = "cpu") -> tuple[Group, ...]:
    """Group the tokens of a batch by how many their adapters have.

    Adapters of one group have within a factor of two as many tokens, so that padding at most doubles the
    work; a batch of n tokens has at most log n groups.

    Args:
        slots: of the adapter of each token; negative for a token that has none.
        device: where the batch is.
    """
    of_token = np.asarray(slots)
    tokens = np.flatnonzero(of_token >= 0)
    tokens = tokens[np.argsort(of_token[tokens], kind="stable")]
    used, starts, counts = np.unique(of_token[tokens], return_index=True, return_counts=True)
    groups = []
    sizes = np.ceil(np.log2(np.maximum(counts, 1)))
    for size in np.unique(sizes):
        chosen = np.flatnonzero(sizes == size)
        length = int(counts[chosen].max())
        low, high = int(used[chosen[0]]), int(used[chosen[-1]]) + 1
        # Idle rows in between cost less than a copy of the others' tensors.
        side_by_side = (high - low - len(chosen)) * length <= len(chosen)
        rows = used[chosen] - low if side_by_side else np.arange(len(chosen))
        placed = np.full((high - low if side_by_side else len(chosen), length), -1)
        for row, start, count in zip(rows, starts[chosen], counts[chosen], strict=True):
            placed[row, :count] = tokens[start : start + count]
        flat = placed.ravel()
        kept = np.flatnonzero(flat >= 0)
        whole = len(flat) == len(of_token) and bool((flat == np.arange(len(flat))).all())
        groups.append(
            Group(
                slots=slice(low, high)
                if side_by_side
                else torch.from_numpy(used[chosen]).to(device),
                tokens=None if whole else torch.from_numpy(np.maximum(flat, 0)).to(device),
                kept=None if len(kept) == len(flat) else torch.from_numpy(kept).to(device),
                length=length,
            )
        )
    return tuple(groups)
