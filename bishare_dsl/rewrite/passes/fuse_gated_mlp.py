"""One call for a gated MLP, which keeps less for its backward."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, cast

from torch import fx

from bishare_dsl.rewrite.gated_mlp import gated_mlp
from bishare_dsl.rewrite.island import island
from bishare_dsl.rewrite.passes.fuse_islands import FuseIslands
from bishare_dsl.rewrite.region import Pass, RegionGraphs


@dataclass(frozen=True)
class FuseGatedMlp(Pass):
    """Before: ``g, u = island(x, ...)``, ``h = act(g) * u``, ``y, = island(h, ...)``.
    After: ``y = gated_mlp(x, ...)``.

    Only where nothing else reads what is between, and neither island's factors read a dropout.
    """

    # Its parts are islands.
    behind = (FuseIslands,)

    def run(self, region: RegionGraphs) -> None:
        for product in region.forward.find_nodes(op="call_function", target=operator.mul):
            for act, up in (product.args, product.args[::-1]):
                if _is_gated(product, act, up):
                    _fuse(region.forward, product, act, up)
                    break


def _is_gated(product: fx.Node, act: Any, up: Any) -> bool:
    """Tell whether ``product`` is ``act(gate) * up`` between two islands, and nothing else reads a part."""
    if not (isinstance(act, fx.Node) and isinstance(up, fx.Node) and act.op == "call_module"):
        return False
    gate: Any = act.args[0] if len(act.args) == 1 and not act.kwargs else None
    if not isinstance(gate, fx.Node) or any(len(n.users) != 1 for n in (gate, up, act, product)):
        return False
    if not gate.target is up.target is operator.getitem or gate.args[0] is not up.args[0]:
        return False
    first, last = cast(fx.Node, gate.args[0]), next(iter(product.users))
    if not first.target is last.target is island or last.args[0] is not product:
        return False
    x, read, _, layers, *_ = cast(Any, first.args)
    return x is read and len(layers) == 2 and len(last.users) == 1


def _fuse(graph: fx.Graph, product: fx.Node, act: Any, up: Any) -> None:
    gate = act.args[0]
    first, last = gate.args[0], next(iter(product.users))
    x, _, a_in, layers, spans, bs = first.args
    _, _, a_out, (down,), (out_span,), (out_b,) = cast(Any, last.args)
    # The gate first, whichever the forward calls first.
    order = [gate.args[1], up.args[1]]
    layers, spans, bs = (tuple(part[i] for i in order) for part in (layers, spans, bs))
    (result,) = last.users
    with graph.inserting_before(last):
        activation = graph.get_attr(str(act.target))
        args = (x, a_in, layers, spans, bs, activation, a_out, down, out_span, out_b)
        result.replace_all_uses_with(graph.call_function(gated_mlp, args))
    for node in (result, last, product, act, gate, up, first):
        graph.erase_node(node)
