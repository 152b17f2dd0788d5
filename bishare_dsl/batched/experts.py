"""Experts in a mixed batch, in a module that stores the weights of all its experts.

Each expert is repeated for each adapter: expert ``e`` of adapter ``r`` has the index ``r experts + e``,
the weights of ``e`` and the terms of ``r``. Tokens are routed to the experts of their row's adapter.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bishare_dsl.batched.rows import dropout_of, row_factors
from bishare_dsl.rewrite.experts import experts_forward
from bishare_dsl.rewrite.rewritten import base_class
from bishare_dsl.transforms.factor import Dense

INDICES = ("top_k_index", "router_indices")
"""Names in transformers for the expert indices of each token, ``(tokens, k)``."""


def run_experts(
    parts: Sequence[tuple[str, float]], module: nn.Module, *args: Any, **kwargs: Any
) -> Any:
    """Run the base's forward of a module of experts in the open batch that contains it.

    Raises:
        AdapterError: the adapter of the tokens is unknown (BS682).
    """
    of_rows = row_factors(module)
    factors = [Dense(factor.dense().flatten(0, 1)) for factor in of_rows]
    rows = of_rows[0].rows
    grouping = rows.grouping
    if grouping.adapters > 1:
        bound = inspect.signature(base_class(type(module)).forward).bind(module, *args, **kwargs)
        _, x, index = bound.args[:3]
        rows.check(x, single=False)
        name = [*bound.arguments][2]
        if name not in INDICES or not hasattr(module, "num_experts"):
            rows.refuse("its forward takes no numbers of experts")
        owners = grouping.owners(index.device).repeat_interleave(len(index) // grouping.rows)
        every = len(factors[0].tensor)
        experts = every // grouping.adapters
        # The index after the last expert means no expert.
        own = torch.where(index < experts, index + experts * owners.unsqueeze(1), every)
        bound.arguments[name] = own
        args = bound.args[1:]
        kwargs = bound.kwargs
    return experts_forward(
        module, factors, parts, args, kwargs, dropout_of(module), grouping.adapters
    )
