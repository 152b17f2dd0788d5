"""What a model computes at one moment, kept while it trains on, without a second copy of its base."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TypeVar, cast

from torch import nn

from bishare_dsl.rewrite.placement import AdapterRoot

Model = TypeVar("Model", bound=nn.Module)


def reference(model: Model) -> Model:
    """Copy an adapted model, but for what does not train, which both have then.

    Args:
        model: neither merged nor disabled.

    Returns:
        A model in eval mode, none of whose parameters train. Those that train in ``model`` are copies; the
        others, and the buffers, are the same tensors.
    """
    frozen = (parameter for parameter in model.parameters() if not parameter.requires_grad)
    shared = {id(tensor): tensor for tensor in chain(frozen, model.buffers())}
    made = copy.deepcopy(model, {**shared})
    for parameter in made.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)
    # Taking the adapter out lets nothing of the shared base train again.
    cast(AdapterRoot, made.bishare).frozen = ()
    return made.eval()
