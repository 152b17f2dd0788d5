"""When two graphs are the same program."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import fx


def graph_signature(graph: fx.Graph) -> Hashable:
    """Give a value that is equal for two graphs if and only if they compute the same, node by node.

    Names that fx made up do not matter. Constants count with their type: `1`, `1.0` and `True`
    are equal to Python, and not the same program.
    """
    index: dict[fx.Node, int] = {}
    rows = []
    for node in graph.nodes:
        rows.append((node.op, node.target, freeze(node.args, index), freeze(node.kwargs, index)))
        index[node] = len(index)
    return tuple(rows)


def freeze(value: Any, index: dict[fx.Node, int]) -> Hashable:
    """Make a hashable stand-in for a node's argument, in which a node is its place in the graph."""
    match value:
        case fx.Node():
            return ("node", index[value])
        case tuple() | list():
            return (type(value).__name__, *(freeze(item, index) for item in value))
        case dict():
            return ("dict", *((key, freeze(item, index)) for key, item in value.items()))
        case slice():
            return ("slice", *(freeze(x, index) for x in (value.start, value.stop, value.step)))
        case float():
            return ("float", repr(value))  # nan is not equal to itself
        case _:
            return (type(value), value)
