"""When two graphs are the same program."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Mapping
from typing import Any, cast

from torch import fx

from bishare_dsl.rewrite import leaves

_PURE_METHODS = {"size"}
_PURE_FUNCTIONS = {getattr, operator.getitem, leaves.shape_of_rank}


def graph_signature(
    graph: fx.Graph, absent: frozenset[str] = frozenset(), training: bool = False
) -> Hashable:
    """Return a value that is equal for two graphs only if they compute the same, step by step.

    Names that fx made up do not matter, nor what is read and not used. Constants count with their type:
    `1`, `1.0` and `True` are equal to Python, and not the same program.

    Args:
        absent: the arguments that are None.
        training: whether the module trains.
    """
    steps: list[Hashable] = []
    values: dict[fx.Node, Hashable] = {}
    for node in graph.nodes:
        args = cast(tuple[Any, ...], freeze(node.args, values))
        step = (node.op, node.target, args, freeze(node.kwargs, values))
        if node.target is leaves.select_training:
            values[node] = args[2 if training else 3]
        elif node.target is leaves.update_cache and args[1] == freeze(None, values):
            values[node] = ("tuple", *args[2:4])
        elif node.target is operator.getitem and args[1][0] == "tuple" and args[2][0] is int:
            values[node] = args[1][1 + args[2][1]]
        elif is_read(node):
            values[node] = step
        else:
            values[node] = ("node", len(steps))
            steps.append(step)
        if node.op == "placeholder" and node.target in absent:
            values[node] = freeze(None, values)
    return tuple(steps)


def is_read(node: fx.Node) -> bool:
    """Tell whether a node only looks at something, so that without users it is nothing."""
    return (
        node.op == "get_attr"
        or (node.op == "call_method" and node.target in _PURE_METHODS)
        or (node.op == "call_function" and node.target in _PURE_FUNCTIONS)
    )


def freeze(value: Any, values: Mapping[fx.Node, Hashable]) -> Hashable:
    """Make a hashable stand-in for a node's argument, in which a node is what ``values`` says."""
    match value:
        case fx.Node():
            return values[value]
        case tuple() | list():
            return ("tuple", *(freeze(item, values) for item in value))
        case dict():
            return ("dict", *((key, freeze(item, values)) for key, item in value.items()))
        case slice():
            return ("slice", *(freeze(x, values) for x in (value.start, value.stop, value.step)))
        case float():
            return ("float", repr(value))  # nan is not equal to itself
        case _:
            return (type(value), value)
