"""One product for all that an island of siblings projects down from the input they share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.passes.share_factors import ShareFactors
from bishare_dsl.rewrite.region import ROWS, Pass, RegionGraphs


@dataclass(frozen=True)
class FuseDowns(Pass):
    """Before: ``down(x, A_1) ... down(x, A_n)``. After: ``z = down(x, cat(A_1 ... A_n))``, and its columns.

    Each skinny product costs a pass over ``x``; one product reads it once, forward and backward.
    """

    # Of equal products there is one each.
    behind = (ShareFactors,)

    def run(self, region: RegionGraphs) -> None:
        graph = region.forward
        for x in graph.nodes:
            downs = sorted(u for u in x.users if u.target is ops.down and u.args[0] is x)
            if len(downs) < 2:
                continue
            factors = [node.args[1] for node in downs]
            with graph.inserting_after(region.last_factor_node()):
                stacked = graph.call_function(torch.cat, (factors,))
            with graph.inserting_before(downs[0]):
                z = graph.call_function(ops.down, (x, stacked))
                z.meta[ROWS] = sum(node.meta[ROWS] for node in downs)
                start = 0
                for node in downs:
                    rows = node.meta[ROWS]
                    columns = graph.call_method("narrow", (z, -1, start, rows))
                    columns.meta[ROWS] = rows
                    node.replace_all_uses_with(columns)
                    start += rows
            for node in downs:
                graph.erase_node(node)
