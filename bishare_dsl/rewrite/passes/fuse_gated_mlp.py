"""Fuse a gated product and the island that reads it into one call, which saves less for the backward."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import fx

from bishare_dsl.rewrite.effects import WRITES
from bishare_dsl.rewrite.gated_island import gated_island
from bishare_dsl.rewrite.island import island
from bishare_dsl.rewrite.region import Pass, RegionGraphs


@dataclass(frozen=True)
class FuseGatedMlp(Pass):
    """Before: ``h = act(gate) * up``, ``ys = island(h, h, ...)``.
    After: ``ys = gated_island(act, gate, up, ...)``.

    This requires that nothing else reads ``act(gate)`` or ``h``, as a dropout of ``h`` would, and that no
    node between ``act`` and the island may write to them.
    """

    def run(self, region: RegionGraphs) -> None:
        graph = region.forward
        for product in graph.find_nodes(op="call_function", target=operator.mul):
            for act, up in (product.args, product.args[::-1]):
                if _is_gated(product, act, up):
                    (ys,) = product.users
                    with graph.inserting_before(ys):
                        args = (graph.get_attr(str(act.target)), act.args[0], up, *ys.args[2:])
                        ys.replace_all_uses_with(graph.call_function(gated_island, args))
                    for node in (ys, product, act):
                        graph.erase_node(node)
                    break


def _is_gated(product: fx.Node, act: Any, up: Any) -> bool:
    """Tell whether only an island reads ``product``, which is ``act(gate) * up``."""
    if not (isinstance(act, fx.Node) and isinstance(up, fx.Node) and act.op == "call_module"):
        return False
    if len(act.args) != 1 or act.kwargs or any(len(n.users) != 1 for n in (act, product)):
        return False
    (reader,) = product.users
    writers = [node for node in product.graph.nodes if WRITES in node.meta]
    written = any(act is node or act < node < reader for node in writers)
    return not written and reader.target is island and product is reader.args[0] is reader.args[1]
