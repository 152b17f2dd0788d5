"""Write the terms into the base's forward, one by one, as the paper's Equation 2 does."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import fx

from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.program import FACTORS, ROWS, RegionProgram, Target, TermUse, target_calls


@dataclass(frozen=True)
class ExpandTerms:
    """Before: the forward is the base's. After: each target's output has its terms added to it.

    ``y = up(... up(target(x), down(x, A_1), s_1 B_1) ..., down(x, A_n), s_n B_n)``, where each transform
    has drawn its effective factors into the graph. Terms of one dropout on one input see one mask.

    Args:
        targets: the linear layers, with their terms.
        shapes: of the region's tensors, by slot.
    """

    targets: tuple[Target, ...]
    shapes: tuple[tuple[int, int], ...]

    def run(self, program: RegionProgram) -> None:
        graph = program.forward
        first = next(node for node in graph.nodes if node.op != "placeholder")
        with graph.inserting_before(first):
            tensors = graph.call_module(FACTORS)
            slots = [
                _Shaped(graph.call_function(operator.getitem, (tensors, i)), shape)
                for i, shape in enumerate(self.shapes)
            ]
        calls = {path: (call, x) for path, call, x in target_calls(graph)}
        dropped: dict[tuple[fx.Node, float], fx.Node] = {}
        for target in self.targets:
            call, x = calls[target.path]
            total = call
            for use in target.terms:
                with graph.inserting_before(first):
                    a, b = _effective(use, target, slots)
                read = x
                if use.dropout:
                    key = (x, use.dropout)
                    if key not in dropped:
                        # Next to what it drops: a sibling may be called before this target is.
                        with graph.inserting_after(x if x.op != "placeholder" else first.prev):
                            training = graph.get_attr("training")
                        with graph.inserting_after(training):
                            dropped[key] = graph.call_function(
                                ops.dropout, (x, use.dropout, training)
                            )
                    read = dropped[key]
                with graph.inserting_after(total):
                    z = graph.call_function(ops.down, (read, a))
                z.meta[ROWS] = use.transform.rows(use.rank, target.width)
                with graph.inserting_after(z):
                    added = graph.call_function(ops.up, (total, z, b))
                for user in [user for user in total.users if user is not added]:
                    user.replace_input_with(total, added)
                total = added


class _Shaped(fx.Proxy):
    """A proxy of a tensor whose shape is known, so that a window of it has constant bounds."""

    def __init__(self, node: fx.Node, shape: tuple[int, int]):
        super().__init__(node, fx.proxy.GraphAppendingTracer(node.graph))
        self.shape = shape


def _effective(use: TermUse, target: Target, slots: list[_Shaped]) -> tuple[fx.Node, fx.Node]:
    """The effective factors of a term as nodes, the scale folded into the second."""
    tensors = {role: slots[slot] for role, slot in use.slots}
    # Proxies stand in for tensors: a transform is written in plain tensor methods.
    a, b = use.transform.factors(tensors, use.rank, target.width)  # type: ignore[arg-type]
    if use.scale != 1:
        b = b * use.scale
    return a.node, b.node  # type: ignore[attr-defined]
