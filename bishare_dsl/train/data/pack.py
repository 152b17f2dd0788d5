"""Several examples in one sequence, so that less is padding."""

from __future__ import annotations

from bishare_dsl.train.data.examples import Examples


def pack(examples: Examples, max_length: int) -> Examples:
    """Put examples together into sequences of at most ``max_length`` tokens: best fit, longest first.

    Every token stays, in its example's order; ``position_ids`` start again at 0 with every example,
    and the first token of an example is never learnt from the example before. The result depends
    on nothing but the lengths. `Collator` makes batches in which no example sees another, and
    `check_packing` sees that a model keeps to that.

    Raises:
        ValueError: an example is longer than ``max_length``.
    """
    raise NotImplementedError
