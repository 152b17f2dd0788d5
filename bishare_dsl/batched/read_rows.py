"""Read the factors from an open batch, with an adapter for each row."""

from __future__ import annotations

from dataclasses import dataclass

from bishare_dsl.batched.rows import dropout_of, factors_of
from bishare_dsl.rewrite.region import DROPOUT_ACTIVE, Pass, RegionGraphs


@dataclass(frozen=True)
class ReadRows(Pass):
    """Before: ``bishare_factors()`` and ``bishare_factors.dropout_active``. After: ``factors_of(self)`` and
    ``dropout_of(self)``.

    The factors are marked as factors of many adapters, which the operations recognise. It runs last.
    """

    def run(self, region: RegionGraphs) -> None:
        graph = region.forward
        call = region.factors_call()
        flags = graph.find_nodes(op="get_attr", target=DROPOUT_ACTIVE)
        for node, read in ((call, factors_of), *((node, dropout_of) for node in flags)):
            with graph.inserting_before(node):
                itself = graph.get_attr("bishare_self")
                node.replace_all_uses_with(graph.call_function(read, (itself,)))
            graph.erase_node(node)
