"""Do once what siblings do alike."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from bishare_dsl.rewrite.region import ADDED, Pass, RegionGraphs
from bishare_dsl.rewrite.signature import freeze


@dataclass(frozen=True)
class ShareFactors(Pass):
    """Before: each term makes its own factors and its own ``down``. After: equal ones are one node.

    A factor that siblings use alike (a window of equal width, a factor without transform) is made
    once, and so is its product with the input that they share.
    """

    def run(self, region: RegionGraphs) -> None:
        graph = region.forward
        numbers = {node: i for i, node in enumerate(graph.nodes)}
        seen: dict[object, fx.Node] = {}
        for node in list(graph.nodes):
            if ADDED not in node.meta:
                continue
            args, kwargs = freeze(node.args, numbers), freeze(node.kwargs, numbers)
            if (twin := seen.setdefault((node.op, node.target, args, kwargs), node)) is not node:
                node.replace_all_uses_with(twin)
                graph.erase_node(node)
