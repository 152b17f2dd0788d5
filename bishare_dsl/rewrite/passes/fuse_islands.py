"""One call for all the linear layers that read one input, with all that is added to them."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx

from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.island import island
from bishare_dsl.rewrite.passes.accumulate_ups import AccumulateUps, Run, runs_of
from bishare_dsl.rewrite.passes.fuse_downs import FuseDowns
from bishare_dsl.rewrite.region import Pass, RegionGraphs


@dataclass(frozen=True)
class FuseIslands(Pass):
    """Before: ``z = down(x, A)``, and for each layer ``up(layer_i(x), z[columns_i], B_i)``.
    After: ``island(x, x, A, layers, columns, Bs)``, and its results.

    Layers that the adapter leaves alone are in the island of their siblings. A target whose terms read
    several inputs (dropouts of different probability) stays as it is.
    """

    # A layer has one product added to it, and its siblings' columns are of one tensor.
    behind = (AccumulateUps, FuseDowns)

    def run(self, region: RegionGraphs) -> None:
        graph = region.forward
        # As the graph is at each step: what one island gives is what the next one reads.
        for x in graph.nodes:
            calls = sorted(u for u in x.users if _is_layer(u, x, region.linears))
            ups = [_up_of(call) for call in calls]
            columns = [() if up is None else runs_of(cast(fx.Node, up.args[1])) for up in ups]
            sources = {z for runs in columns for z, _, _ in runs}
            if len(sources) == 1:
                _fuse(graph, x, sources.pop(), calls, ups, columns)


def _is_layer(node: fx.Node, x: fx.Node, linears: frozenset[str]) -> bool:
    """Tell whether a node calls a linear layer on ``x`` and nothing else."""
    return (
        node.op == "call_module"
        and node.target in linears
        and node.args == (x,)
        and not node.kwargs
    )


def _up_of(call: fx.Node) -> fx.Node | None:
    """Find what adds the adapter's product to the result of a layer."""
    return next((u for u in call.users if u.target is ops.up and u.args[0] is call), None)


def _fuse(
    graph: fx.Graph,
    x: fx.Node,
    z: fx.Node,
    calls: list[fx.Node],
    ups: list[fx.Node | None],
    columns: list[tuple[Run, ...]],
) -> None:
    read, a = z.args
    with graph.inserting_before(calls[0]):
        layers = tuple(graph.get_attr(str(call.target)) for call in calls)
        places = tuple(tuple((start, rows) for _, start, rows in runs) for runs in columns)
        bs = tuple(None if up is None else up.args[2] for up in ups)
        together = graph.call_function(island, (x, read, a, layers, places, bs))
        results = [graph.call_function(operator.getitem, (together, i)) for i in range(len(calls))]
    for call, up, result in zip(calls, ups, results, strict=True):
        if up is None:
            call.replace_all_uses_with(result)
        else:
            up.replace_all_uses_with(result)
            graph.erase_node(up)
        graph.erase_node(call)
    for node in reversed(graph.nodes):
        if node.target in ("narrow", torch.cat, ops.down) and not node.users:
            graph.erase_node(node)
