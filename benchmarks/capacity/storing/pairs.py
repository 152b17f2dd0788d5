"""Random key-value pairs, independent of each other."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from storing.bases import VALUES, Base


class Pairs(NamedTuple):
    """N pairs.

    Attributes:
        keys: tokens (N, length of a key).
        values: numbers (N,) below `VALUES`.
        tokens: of the values (VALUES,).
    """

    keys: torch.Tensor
    values: torch.Tensor
    tokens: torch.Tensor


def pairs(base: Base, task: str, count: int, seed: int) -> Pairs:
    """Draw pairs.

    Args:
        base: whose tokens they are.
        task: ``one``, keys of one token; or ``two``, keys of two, either of which is in many keys, so that
            the pair alone decides.
        count: N.
        seed: of everything.
    """
    draw = torch.Generator().manual_seed(seed)
    if task == "one":
        tokens = base.tokens(VALUES + count, seed)
        keys = tokens[VALUES:, None]
    else:
        # Half of what two such alphabets can make is used.
        side = math.ceil(math.sqrt(2 * count))
        tokens = base.tokens(VALUES + 2 * side, seed)
        chosen = torch.randperm(side * side, generator=draw)[:count]
        first, second = tokens[VALUES : VALUES + side], tokens[VALUES + side :]
        keys = torch.stack((first[chosen // side], second[chosen % side]), 1)
    return Pairs(keys, torch.randint(VALUES, (count,), generator=draw), tokens[:VALUES])
