"""Compute once what siblings compute equally."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from bishare_dsl.rewrite.region import ADDED, Pass, RegionGraphs
from bishare_dsl.rewrite.signature import freeze


@dataclass(frozen=True)
class ShareFactors(Pass):
    """Before: each term computes its factors and its ``down``. After: equal computations are one node.

    A factor that siblings use in the same form (a window of equal width, a factor without transform) is
    computed once. So is its product with their common input.
    """

    def run(self, region: RegionGraphs) -> None:
        graph = region.forward
        numbers = {node: i for i, node in enumerate(graph.nodes)}
        seen: dict[object, fx.Node] = {}
        for node in list(graph.nodes):
            if ADDED not in node.meta:
                continue
            args = freeze(node.args, numbers)
            kwargs = freeze(node.kwargs, numbers)
            if (twin := seen.setdefault((node.op, node.target, args, kwargs), node)) is not node:
                node.replace_all_uses_with(twin)
                graph.erase_node(node)
