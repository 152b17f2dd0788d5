"""Move the computation of factors out of the forward."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import cast

from torch import fx

from bishare_dsl.rewrite.region import Pass, RegionGraphs


@dataclass(frozen=True)
class HoistFactors(Pass):
    """Before: the forward computes the factors it applies. After: the assembly does; the forward calls it.

    Nodes that depend on activations stay in the forward, and the assembly returns exactly their inputs.
    The factors of many adapters can then be computed together, without autocast.
    """

    def run(self, region: RegionGraphs) -> None:
        forward = region.forward
        assembly = region.assembly
        call = region.factors_call()
        nodes = region.factor_nodes()
        output = next(node for node in assembly.nodes if node.op == "output")
        tensors = cast(tuple[fx.Node, ...], output.args[0])
        moved: dict[fx.Node, fx.Node] = {}
        with assembly.inserting_before(output):
            for node in nodes:
                if node.target is operator.getitem and node.args[0] is call:
                    moved[node] = tensors[cast(int, node.args[1])]
                else:
                    moved[node] = assembly.node_copy(node, moved.__getitem__)
        used = [node for node in nodes if any(user not in moved for user in node.users)]
        output.args = (tuple(moved[node] for node in used),)
        with forward.inserting_before(call.next):
            items = [forward.call_function(operator.getitem, (call, i)) for i in range(len(used))]
        for node, item in zip(used, items, strict=True):
            node.replace_all_uses_with(item, delete_user_cb=lambda user: user not in moved)
        for node in reversed(nodes):
            forward.erase_node(node)
