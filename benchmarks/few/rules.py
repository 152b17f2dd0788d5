"""Where a library's new adapter starts: at zero, or at a weighted sum of the library's members.

The members of a library share A and B, so that a weighted sum of their own tensors is a member too. Members
are weighed by their summed loss L on the new task's examples, ``w = softmax(-sharpness * L)``: sharpness 0
gives the mean of all members, and infinity the nearest member.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Start = Literal["zero", "mean", "nearest", "mixture", "auto"]
SHARPNESS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, math.inf)
"""Candidates, from the mean of all members to the nearest one."""
FOLDS = 4
"""Parts into which a new task's examples are divided, at most."""
LIBRARY_ROWS = 8
"""For how many of a new task's own rows the library's record counts."""


def weights(losses: Tensor, sharpness: float) -> Tensor:
    """Weigh members by their losses.

    Args:
        losses: the summed loss of each member, (..., members); infinity leaves a member out.
        sharpness: from 0 (all weigh the same) to infinity (the best alone).

    Returns:
        (..., members), with a sum of 1.
    """
    if math.isinf(sharpness):
        return F.one_hot(losses.argmin(-1), losses.shape[-1]).to(losses)
    return torch.where(losses.isinf(), -math.inf, -sharpness * losses).softmax(-1)


def sharpest(scores: Mapping[float, tuple[float, float]]) -> float:
    """Return the sharpness with the most correct rows; of equals, the one with the least loss.

    Args:
        scores: the part of the rows that is correct, and the mean loss, by sharpness.
    """
    return min(scores, key=lambda sharpness: (-scores[sharpness][0], scores[sharpness][1]))


def folds(count: int) -> list[list[int]]:
    """Divide the numbers of examples into parts, each to be judged by what the other parts teach."""
    parts = min(FOLDS, count)
    return [list(range(part, count, parts)) for part in range(parts)]


def members_win(members: Sequence[bool], trained: Sequence[bool], ahead: float) -> bool:
    """Return whether a sum of members is better than tensors trained from zero; a tie goes to training.

    Args:
        members: for each of a new task's examples, whether members weighed by the other folds answer it.
        trained: the same for tensors trained on the other folds.
        ahead: by what part of the rows members were better when members of the library were left out. Shared
            tensors have seen a member that is left out, which flatters training: only a lead counts.
    """
    return LIBRARY_ROWS * max(ahead, 0.0) + sum(members) - sum(trained) > 0
