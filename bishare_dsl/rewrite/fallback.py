"""A region for a single linear layer, used if its parent cannot be traced."""

from __future__ import annotations

import inspect

from torch import fx, nn

from bishare_dsl.rewrite.leaves import OPAQUE_ARGS, OPAQUE_KWARGS, base_forward
from bishare_dsl.rewrite.rewritten import base_class, has_own_forward
from bishare_dsl.rewrite.trace import UntraceableRegion, check_decorators


def linear_region(module: nn.Module) -> fx.Graph:
    """Build the graph `y = base_forward(self, x)`, the forward of the linear layer itself.

    The layer stays an opaque call, so it may be an `nn.Linear`, transformers' `Conv1D` or any quantised
    layer. The first placeholder has the name of the layer's own parameter, because callers may pass it by
    keyword. Other arguments are passed through.

    Raises:
        UntraceableRegion: the layer's forward does not take one tensor, or was replaced on the instance,
            where a generated class cannot override it.
    """
    if has_own_forward(module):
        raise UntraceableRegion("its forward was replaced on the instance")
    check_decorators(module)
    forward = inspect.unwrap(base_class(type(module)).forward)
    _, *parameters = inspect.signature(forward).parameters.values()
    if not parameters or parameters[0].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        raise UntraceableRegion("its forward does not take a tensor by name")
    x, *others = parameters
    graph = fx.Graph()
    args: list[fx.node.Argument] = [graph.placeholder(x.name)]
    kwargs: dict[str, fx.node.Argument] = {}
    for other in others:
        match other.kind:
            case other.VAR_POSITIONAL:
                kwargs[OPAQUE_ARGS] = graph.placeholder(f"*{other.name}")
            case other.VAR_KEYWORD:
                kwargs[OPAQUE_KWARGS] = graph.placeholder(f"**{other.name}")
            case _ if other.default is other.empty:
                raise UntraceableRegion(f"its forward needs {other.name} beside a tensor")
            case other.KEYWORD_ONLY:
                kwargs[other.name] = graph.placeholder(other.name, default_value=other.default)
            case _:
                args.append(graph.placeholder(other.name, default_value=other.default))
    # After the placeholders, because passes look for the first computation.
    itself = graph.get_attr("bishare_self")
    graph.output(graph.call_function(base_forward, (itself, *args), kwargs))
    graph.lint()
    return graph
