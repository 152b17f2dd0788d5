"""Write the terms into the base's forward, one by one, as the paper's Equation 2 does."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from bishare_dsl.rewrite import few as of_few
from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.region import (
    ADDED,
    DROPS,
    FACTORS,
    ROWS,
    Lookup,
    Pass,
    RegionGraphs,
    Target,
    TermUse,
    read_by,
    target_calls,
)
from bishare_dsl.transforms import Transform, Width, effective_pair, guard, update_of
from bishare_dsl.transforms.apply import GAIN_OUT, GAIN_RANK


@dataclass(frozen=True)
class ExpandTerms(Pass):
    """Before: the forward is the base's. After: each target's output has its terms added to it.

    ``y = up(... up(target(x), down(x, A_1), s_1 B_1) ..., down(x, A_n), s_n B_n)``, where each transform
    has put its effective factors into the graph. A term that is not linear in x puts in its update, and
    that is added. Of an embedding, x are the one-hot rows of its indices, and ``down`` is `ops.look_up`.
    Terms of one dropout on one input see one mask. A layer that is called twice has its terms added to
    each call.

    Args:
        targets: the linear layers, with their terms.
        shapes: of the region's tensors, by slot.
    """

    targets: tuple[Target, ...]
    shapes: tuple[tuple[int, int], ...]

    def run(self, region: RegionGraphs) -> None:
        region.few = fx.Graph()
        region.few.output(region.few.graph_copy(region.forward, {}))
        for graph in (region.forward, region.few):
            base = set(graph.nodes)
            self._write(graph, few=graph is region.few)
            for node in graph.nodes:
                # Two calls of a layer stay two: what they give is written to.
                if node not in base and node.target is not of_few.linear:
                    node.meta[ADDED] = True

    def _write(self, graph: fx.Graph, few: bool) -> None:
        first = next(node for node in graph.nodes if node.op != "placeholder")
        with graph.inserting_before(first):
            if few:
                x = graph.find_nodes(op="placeholder")[0]
                tensors = graph.call_method("tensors", (graph.get_attr(FACTORS), x))
            else:
                tensors = graph.call_module(FACTORS)
            tracer = fx.proxy.GraphAppendingTracer(graph)  # One: torch takes no proxies of several.
            slots = [
                _Shaped(graph.call_function(operator.getitem, (tensors, i)), shape, tracer)
                for i, shape in enumerate(self.shapes)
            ]
        targets = {target.path: target for target in self.targets}
        # In the order of the calls: what one reads has the terms of those before it by then.
        for path, call in list(target_calls(graph)):
            if path in targets:
                self._add_terms(graph, targets[path], call, slots, first, few)

    def _add_terms(
        self,
        graph: fx.Graph,
        target: Target,
        call: fx.Node,
        slots: list[_Shaped],
        first: fx.Node,
        few: bool,
    ) -> None:
        x, total = read_by(call), call
        if few and target.lookup is None and any(use.transform.linear for use in target.terms):
            total = _written(graph, call)
        for use in target.terms:
            tensors = {role: slots[slot] for role, slot in use.slots}
            add: Callable[..., fx.Node]
            if target.lookup is not None:
                add, read = partial(_looked_up, target.lookup, few), x
            else:
                read = _dropped(graph, x, use.dropout, first) if use.dropout else x
                pair = partial(_pair_of_few, slots[0].node) if few else _pair
                add = pair if use.transform.linear else _update
            users = [*total.users]
            with graph.inserting_before(total.next):
                added = add(graph, use, target.width, tensors, total, read, first)
            for user in users:
                user.replace_input_with(total, added)
            if total.target is of_few.unflat and not total.users:
                graph.erase_node(total)
            total = added


class _Shaped(fx.Proxy):
    """A proxy of a tensor whose shape is known, so that a window of it has constant bounds.

    Proxies stand in for tensors: a transform is written in plain tensor methods.
    """

    def __init__(self, node: fx.Node, shape: tuple[int, int], tracer: fx.proxy.TracerBase):
        super().__init__(node, tracer)
        self.shape = shape


def _dropped(
    graph: fx.Graph, x: fx.Node, p: float, first: fx.Node, drop: Callable[..., Any] = ops.dropout
) -> fx.Node:
    """Return the one dropout of an input, next to the input: a sibling may read it before the target.

    Of indices, ``drop`` is `ops.kept_ones`.
    """
    for user in x.users:
        if user.target is drop and user.args[1] == p:
            return user
    with graph.inserting_before(first if x.op == "placeholder" else x.next):
        return graph.call_function(drop, (x, p, graph.get_attr(DROPS)))


def _pair(
    graph: fx.Graph,
    use: TermUse,
    width: Width,
    tensors: Any,
    total: fx.Node,
    x: fx.Node,
    first: fx.Node,
) -> fx.Node:
    """Make ``up(total, down(x, A), B)``, with the factors made in front of everything."""
    with graph.inserting_before(first), guard(use.transform, "factors"):
        a, b = effective_pair(use.transform, tensors, use.rank, width, use.scale)
    z = graph.call_function(ops.down, (x, a.node))  # type: ignore[attr-defined]
    z.meta[ROWS] = use.rows
    return graph.call_function(ops.up, (total, z, b.node))  # type: ignore[attr-defined]


def _written(graph: fx.Graph, call: fx.Node) -> fx.Node:
    """Return the result of a layer as one that may be written to."""
    with graph.inserting_before(call.next):
        if call.op == "call_module":
            layer = graph.get_attr(str(call.target))
            own = graph.call_function(of_few.linear, (layer, *call.args))
        else:
            own = graph.call_function(torch.clone, (call,))
    call.replace_all_uses_with(own, delete_user_cb=lambda user: user is not own)
    if not call.users:
        graph.erase_node(call)
    return own


def _pair_of_few(
    like: fx.Node,
    graph: fx.Graph,
    use: TermUse,
    width: Width,
    tensors: Any,
    total: fx.Node,
    x: fx.Node,
    first: fx.Node,
) -> fx.Node:
    """Make ``total + s (x A^T) B`` in two calls, with nothing cast or scaled that is as large as a factor."""
    # What is added to one total is added to it flat.
    y, before = total.args if total.target is of_few.unflat else (None, total)
    if y is None:
        y = graph.call_function(of_few.flat, (total, like))
    x = graph.call_function(of_few.flat, (x, like))
    if kernels := _kernels(use.transform, width, tensors):
        y = graph.call_function(of_few.add_by_kernels, (y, x, *kernels, use.scale))
        return graph.call_function(of_few.unflat, (y, before))
    with guard(use.transform, "factors"):
        a, b = effective_pair(use.transform, tensors, use.rank, width, 1)
    z = graph.call_function(F.linear, (x, a.node))  # type: ignore[attr-defined]
    y = graph.call_method("addmm_", (y, z, b.node), {"alpha": use.scale})  # type: ignore[attr-defined]
    return graph.call_function(of_few.unflat, (y, before))


def _kernels(transform: Transform, width: Width, tensors: Any) -> tuple[Any, Any, Any] | None:
    """Return of A and B the kernels, the shared factors and the kernels' columns, where they are no more."""
    found = []
    for role, side in zip("AB", width, strict=True):
        columns = tensors[role].shape[1] if role in tensors else side
        kept = transform.kept(role, side, columns)
        if kept is None or kept.kernel is None or kept.rowwise or side % columns:
            return None
        found.append((tensors[kept.kernel].node, tensors[kept.role].node, side // columns))
    kernels, shared, blocks = zip(*found, strict=True)
    return None if {GAIN_RANK, GAIN_OUT} & {*tensors} else (kernels, shared, blocks)


def _looked_up(
    lookup: Lookup,
    few: bool,
    graph: fx.Graph,
    use: TermUse,
    width: Width,
    tensors: Any,
    total: fx.Node,
    ids: fx.Node,
    first: fx.Node,
) -> fx.Node:
    """Make ``up(total, look_up(ids, A), B)``; of a head's terms ``up(total, look_up(ids, B), A)``."""
    # For few tokens the product is scaled, since the factor of a tied head is as wide as a vocabulary.
    of_factor, of_product = (1.0, use.scale) if few else (use.scale, 1.0)
    with graph.inserting_before(first), guard(use.transform, "factors"):
        pair = effective_pair(use.transform, tensors, use.rank, width, of_factor)
    a, b = (factor.node for factor in (reversed(pair) if lookup.swapped else pair))  # type: ignore[attr-defined]
    given: tuple[Any, ...] = (ids, a, lookup.padding)
    if use.dropout:
        given = (*given, _dropped(graph, ids, use.dropout, first, ops.kept_ones))
    z = graph.call_function(ops.look_up, given)
    if lookup.scaled:
        scale, weight = graph.get_attr("embed_scale"), graph.get_attr("weight")
        z = graph.call_function(ops.times, (z, scale, weight))
    z.meta[ROWS] = use.rows
    return graph.call_function(ops.up, (total, z, b, of_product) if few else (total, z, b))


def _update(
    graph: fx.Graph,
    use: TermUse,
    width: Width,
    tensors: Any,
    total: fx.Node,
    x: fx.Node,
    first: fx.Node,
) -> fx.Node:
    """Make ``total + update(x)``, with the tensors in the dtype of x."""
    tracer = fx.proxy.GraphAppendingTracer(graph)
    cast: Any = {
        role: _Shaped(graph.call_function(ops.cast, (tensor.node, x)), tensor.shape, tracer)
        for role, tensor in tensors.items()
    }
    proxy: Any = fx.Proxy(x, tracer)
    with guard(use.transform, "update"):
        delta: Any = update_of(use.transform, proxy, cast, use.rank, width, use.scale)
    return graph.call_function(ops.add, (total, delta.node))
