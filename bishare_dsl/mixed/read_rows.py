"""Read the factors of an open batch, in which each row has an adapter of its own."""

from __future__ import annotations

from dataclasses import dataclass

from bishare_dsl.mixed.rows import drops_of, rows_of
from bishare_dsl.rewrite.region import DROPS, Pass, RegionGraphs


@dataclass(frozen=True)
class ReadRows(Pass):
    """Before: ``bishare_factors(hidden_states)`` and ``bishare_factors.drops``. After: ``rows_of(self)`` and
    ``drops_of(self)``.

    What applies a factor sees that it is one of many adapters. It runs last.
    """

    def run(self, region: RegionGraphs) -> None:
        graph, call, region.few = region.forward, region.factors_call(), None
        with graph.inserting_before(call):
            itself = graph.get_attr("bishare_self")
            call.replace_all_uses_with(graph.call_function(rows_of, (itself,)))
        graph.erase_node(call)
        for node in graph.find_nodes(op="get_attr", target=DROPS):
            with graph.inserting_before(node):
                itself = graph.get_attr("bishare_self")
                node.replace_all_uses_with(graph.call_function(drops_of, (itself,)))
            graph.erase_node(node)
