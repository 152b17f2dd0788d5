"""Several examples in one sequence, so that less is padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict

from bishare_dsl.train.data.examples import Examples


def pack(examples: Examples, max_length: int) -> Examples:
    """Put examples together into sequences of at most ``max_length`` tokens: best fit, longest first.

    (Ding et al. 2024, Fewer Truncations Improve Language Modeling, https://arxiv.org/abs/2404.10830.)
    Every token stays, in its example's order; ``position_ids`` start again at 0 with every example,
    and the first token of an example is never learnt from the example before. The result depends
    on nothing but the lengths. `Collator` makes batches in which no example sees another, and
    `check_packing` sees that a model keeps to that.

    Raises:
        ValueError: an example is longer than ``max_length``.
    """
    if (longest := max(examples.lengths, default=0)) > max_length:
        raise ValueError(f"an example of {longest} tokens does not fit {max_length}")
    packs: list[list[int]] = []
    with_space: dict[int, list[int]] = defaultdict(list)  # Packs by the space left in them.
    spaces: list[int] = []  # Those of which there are packs, ascending.
    # Stable, so that examples of one length are packed in their order.
    for index in sorted(range(len(examples.lengths)), key=lambda i: -examples.lengths[i]):
        length = examples.lengths[index]
        fit = bisect_left(spaces, length)
        if fit < len(spaces):
            space = spaces[fit]
            number = with_space[space].pop()
            if not with_space[space]:
                del spaces[fit]
        else:
            space, number = max_length, len(packs)
            packs.append([])
        packs[number].append(index)
        if left := space - length:
            if not with_space[left]:
                insort(spaces, left)
            with_space[left].append(number)
    # In the order of the data, since the longest example of all is no good place to begin.
    return examples.packed(sorted(sorted(indices) for indices in packs))
