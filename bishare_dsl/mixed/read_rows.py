"""Read the factors of an open batch, in which each row has an adapter of its own."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import cast

from torch import fx

from bishare_dsl.mixed.few import FewRows, are_few, few_rows
from bishare_dsl.mixed.rows import drops_of, rows_of
from bishare_dsl.rewrite import few, ops
from bishare_dsl.rewrite.island import add
from bishare_dsl.rewrite.region import ADDED, DROPS, Pass, RegionGraphs

OF_MANY = {
    "tensors",
    operator.getitem,
    ops.dropout,
    *(few.flat, few.unflat, few.down, few.add_by_kernels, add),
}
"""What takes tensors of many adapters as it does those of one. A transform may call anything."""


@dataclass(frozen=True)
class ReadRows(Pass):
    """Before: ``bishare_factors(hidden_states)`` and ``bishare_factors.drops``. After: ``rows_of(self)`` and
    ``drops_of(self)``.

    What applies a factor sees that it is one of many adapters. The program for few tokens reads
    ``few_rows(self, hidden_states)``, if all that it calls takes tensors of many, and these are smaller than
    factors. It runs last.
    """

    def run(self, region: RegionGraphs) -> None:
        graph, call = region.forward, region.factors_call()
        with graph.inserting_before(call):
            itself = graph.get_attr("bishare_self")
            call.replace_all_uses_with(graph.call_function(rows_of, (itself,)))
        graph.erase_node(call)
        region.few, region.are_few = region.few and _of_many(region.few), are_few
        for graph in filter(None, (region.forward, region.few)):
            for node in graph.find_nodes(op="get_attr", target=DROPS):
                with graph.inserting_before(node):
                    itself = graph.get_attr("bishare_self")
                    node.replace_all_uses_with(graph.call_function(drops_of, (itself,)))
                graph.erase_node(node)


def _of_many(graph: fx.Graph) -> fx.Graph | None:
    """Let a program for few tokens read an open batch; None where it cannot, or gains nothing."""
    added = [node for node in graph.nodes if ADDED in node.meta and node.op != "get_attr"]
    called = {node.target for node in added}
    if few.add_by_kernels not in called or not called <= OF_MANY:
        return None
    call = next(node for node in added if node.target == "tensors")
    with graph.inserting_before(call):
        rows = graph.call_function(few_rows, (graph.get_attr("bishare_self"), call.args[1]))
        call.replace_all_uses_with(graph.call_function(getattr, (rows, "tensors")))
    for node in (call, cast(fx.Node, call.args[0])):
        graph.erase_node(node)
    for node in added:
        if node.target is few.flat:
            node.target, node.args = FewRows.flat, (rows, node.args[0])
        elif node.target is few.unflat:
            node.target, node.args = FewRows.unflat, (rows, *node.args)
    return graph
