"""Do once what siblings do alike."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.region import Pass, RegionGraphs
from bishare_dsl.rewrite.signature import freeze


@dataclass(frozen=True)
class ShareFactors(Pass):
    """Before: each term makes its own factors and its own ``down``. After: equal ones are one node.

    A factor that siblings use alike (a window of equal width, a factor without transform) is made
    once, and so is its product with the input that they share.
    """

    def run(self, region: RegionGraphs) -> None:
        factors = set(region.factor_nodes())
        numbers = {node: i for i, node in enumerate(region.forward.nodes)}
        seen: dict[object, fx.Node] = {}
        for node in list(region.forward.nodes):
            if node not in factors and node.target is not ops.down:
                continue
            key = (node.op, node.target, freeze(node.args, numbers), freeze(node.kwargs, numbers))
            if (twin := seen.setdefault(key, node)) is not node:
                node.replace_all_uses_with(twin)
                region.forward.erase_node(node)
