"""Read the factors from an open batch, with an adapter for each row."""

from __future__ import annotations

from dataclasses import dataclass

from bishare_dsl.batched.rows import drops_of, factors_of
from bishare_dsl.rewrite.region import DROPS, Pass, RegionGraphs


@dataclass(frozen=True)
class ReadRows(Pass):
    """Before: ``bishare_factors()`` and ``bishare_factors.drops``. After: ``factors_of(self)`` and
    ``drops_of(self)``.

    The factors are marked as factors of many adapters, which the operations recognise. It runs last.
    """

    def run(self, region: RegionGraphs) -> None:
        graph, call = region.forward, region.factors_call()
        drops = graph.find_nodes(op="get_attr", target=DROPS)
        for node, read in ((call, factors_of), *((node, drops_of) for node in drops)):
            with graph.inserting_before(node):
                itself = graph.get_attr("bishare_self")
                node.replace_all_uses_with(graph.call_function(read, (itself,)))
            graph.erase_node(node)
