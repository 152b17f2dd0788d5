"""One region for one linear layer, where its parent cannot be traced."""

from __future__ import annotations

import inspect

from torch import fx, nn

from bishare_dsl.rewrite.install import base_class
from bishare_dsl.rewrite.leaves import base_forward
from bishare_dsl.rewrite.trace import UntraceableRegion


def linear_region(module: nn.Module) -> fx.Graph:
    """The graph `y = base_forward(self, x)`, to be installed in the linear layer itself.

    The layer stays an opaque call, so that it may be an `nn.Linear`, transformers' `Conv1D` or any
    quantised layer. The graph has one placeholder, named as the layer's own forward names it, since
    callers may pass it by keyword.

    Raises:
        UntraceableRegion: the layer's forward does not take one tensor.
    """
    parameters = list(inspect.signature(base_class(type(module)).forward).parameters.values())[1:]
    if not parameters or parameters[0].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        raise UntraceableRegion("its forward does not take a tensor by name")
    if any(p.default is p.empty and p.kind < p.VAR_POSITIONAL for p in parameters[1:]):
        raise UntraceableRegion("its forward takes more than one tensor")
    graph = fx.Graph()
    x = graph.placeholder(parameters[0].name)
    y = graph.call_function(base_forward, (graph.get_attr("bishare_self"), x))
    graph.output(y)
    graph.lint()
    return graph
