"""Fuse all linear layers that read one input, with their terms, into one call."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import fx

from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.island import Use, add_terms, island
from bishare_dsl.rewrite.leaves import base_forward
from bishare_dsl.rewrite.region import ROWS, Pass, RegionGraphs, read_by


@dataclass(frozen=True)
class FuseIslands(Pass):
    """Before: for each layer ``up(... up(layer_i(x), down(x, A_1), B_1) ..., down(x, A_n), B_n)``.
    After: ``island(x, x, (A_1, ...), layers, uses, ((B_1, ...), ...))``, and its results.

    Each skinny product costs a pass over ``x`` or over a layer's output. An island has one product for
    all ``A``, and one for each layer's ``B``, in the order of their rows in ``A``. Layers without terms
    join the island of their siblings. A layer that is itself a region becomes ``add_terms(layer(x), x,
    ...)``. A target whose terms read several inputs (different dropouts) is not fused, nor are its
    siblings.
    """

    def run(self, region: RegionGraphs) -> None:
        graph = region.forward
        # Iterate over the changing graph, because one island's output is the next one's input.
        for x in graph.nodes:
            calls = sorted(u for u in x.users if _is_layer(u, x, region.linears))
            ups = [_ups_of(call) for call in calls]
            downs = sorted({_down_of(up) for chain in ups for up in chain})
            if len({down.args[0] for down in downs}) == 1:
                _fuse(graph, x, calls, ups, downs)


def _is_layer(node: fx.Node, x: fx.Node, linears: frozenset[str]) -> bool:
    """Tell whether a node calls a linear layer on ``x``."""
    if node.target is base_forward:
        return read_by(node) is x
    is_linear = node.op == "call_module" and node.target in linears
    return is_linear and node.args == (x,) and not node.kwargs


def _ups_of(call: fx.Node) -> list[fx.Node]:
    """Find the sequence of nodes that add the terms to a layer's output."""
    ups: list[fx.Node] = []
    total = call
    while True:
        up = next((u for u in total.users if u.target is ops.up and u.args[0] is total), None)
        if up is None or _down_of(up).target is not ops.down:
            return ups
        ups.append(up)
        total = up


def _fuse(
    graph: fx.Graph,
    x: fx.Node,
    calls: Sequence[fx.Node],
    ups: Sequence[list[fx.Node]],
    downs: Sequence[fx.Node],
) -> None:
    """Replace layers on one ``x``, their terms and the products with A by an island."""
    starts: dict[fx.Node, int] = {}
    rows = 0
    for down in downs:
        starts[down] = rows
        rows += down.meta[ROWS]
    numbers = {down: i for i, down in enumerate(downs)}
    uses: list[tuple[Use, ...]] = []
    bs: list[tuple[fx.node.Argument, ...]] = []
    for chain in ups:
        ordered = sorted(chain, key=lambda up: starts[_down_of(up)])
        of_chain = [_use(up, numbers[_down_of(up)], starts[_down_of(up)]) for up in ordered]
        uses.append(tuple(of_chain))
        bs.append(tuple(up.args[2] for up in ordered))
    read = downs[0].args[0]
    factors = tuple(down.args[1] for down in downs)
    if calls[0].target is base_forward:
        with graph.inserting_before(calls[0].next):
            args = (calls[0], read, factors, uses[0], bs[0])
            results = [graph.call_function(add_terms, args)]
        replaced: Sequence[fx.Node] = ()
    else:
        with graph.inserting_before(calls[0]):
            layers = tuple(graph.get_attr(str(call.target)) for call in calls)
            together = graph.call_function(
                island, (x, read, factors, layers, tuple(uses), tuple(bs))
            )
            results = [
                graph.call_function(operator.getitem, (together, i)) for i in range(len(calls))
            ]
        replaced = calls
    for call, chain, result in zip(calls, ups, results, strict=True):
        last = chain[-1] if chain else call
        last.replace_all_uses_with(result)
    chains = [up for chain in ups for up in reversed(chain)]
    for node in (*chains, *downs, *replaced):
        if not node.users:
            graph.erase_node(node)


def _down_of(up: fx.Node) -> fx.Node:
    return cast(fx.Node, up.args[1])


def _use(up: fx.Node, number: int, start: int) -> Use:
    """Describe which factors of the island a term uses."""
    scale = cast(float, up.args[3]) if len(up.args) > 3 else 1.0
    return number, start, _down_of(up).meta[ROWS], scale
