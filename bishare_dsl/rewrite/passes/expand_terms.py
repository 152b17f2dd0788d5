"""Write the terms into the base's forward, one by one, as the paper's Equation 2 does."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from bishare_dsl.rewrite import few as of_few
from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.island import add
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
from bishare_dsl.transforms import GAIN_OUT, GAIN_RANK, Width, effective_pair, guard, update_of


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
        targets = {target.path: target for target in self.targets}
        for graph, kind in ((region.forward, _Terms), (region.few, _FewTerms)):
            base = set(graph.nodes)
            terms = kind(graph, self.shapes)
            # In the order of the calls: what one reads has the terms of those before it by then.
            for path, call in list(target_calls(graph)):
                if path in targets:
                    terms.add(targets[path], call)
            for node in graph.nodes:
                # Two calls of a layer stay two: what they give is written to.
                if node not in base and node.target is not of_few.linear:
                    node.meta[ADDED] = True


class _Shaped(fx.Proxy):
    """A proxy of a tensor whose shape is known, so that a window of it has constant bounds.

    Proxies stand in for tensors: a transform is written in plain tensor methods.
    """

    def __init__(self, node: fx.Node, shape: tuple[int, int], tracer: fx.proxy.TracerBase):
        super().__init__(node, tracer)
        self.shape = shape


class _Terms:
    """Writes terms into a forward.

    Attributes:
        first: the first node that computes, in front of which factors are made.
        tensors: of the region, by slot.
    """

    def __init__(self, graph: fx.Graph, shapes: tuple[tuple[int, int], ...]) -> None:
        self.graph, self.call = graph, graph.call_function
        self.first = next(node for node in graph.nodes if node.op != "placeholder")
        # One: torch takes no proxies of several.
        self.tracer = fx.proxy.GraphAppendingTracer(graph)
        with graph.inserting_before(self.first):
            given = self.given()
            self.tensors = [
                _Shaped(self.call(operator.getitem, (given, i)), shape, self.tracer)
                for i, shape in enumerate(shapes)
            ]

    def given(self) -> fx.Node:
        """Call for the tensors."""
        return self.graph.call_module(FACTORS)

    def start(self, target: Target, call: fx.Node) -> fx.Node:
        """Return what the terms of a target are added to."""
        return call

    def add(self, target: Target, call: fx.Node) -> None:
        """Add the terms of a target to what a call of it gives."""
        x, total = read_by(call), self.start(target, call)
        for use in target.terms:
            users = [*total.users]
            with self.graph.inserting_before(total.next):
                if target.lookup is not None:
                    added = self.looked_up(target.lookup, use, target.width, total, x)
                else:
                    read = self.dropped(x, use.dropout, ops.dropout)
                    make = self.pair if use.transform.linear else self.update
                    added = make(use, target.width, total, read)
            for user in users:
                user.replace_input_with(total, added)
            if total.target is of_few.unflat and not total.users:
                self.graph.erase_node(total)
            total = added

    def of(self, use: TermUse) -> Any:
        """Return the tensors of a term, by role."""
        return {role: self.tensors[slot] for role, slot in use.slots}

    def factors(self, use: TermUse, width: Width, scale: float) -> tuple[fx.Node, fx.Node]:
        """Make the effective factors of a term."""
        with guard(use.transform, "factors"):
            a, b = effective_pair(use.transform, self.of(use), use.rank, width, scale)
        return a.node, b.node  # type: ignore[attr-defined]

    def dropped(self, x: fx.Node, p: float, drop: Any) -> fx.Node:
        """Return the one dropout of an input, next to the input: a sibling may read it before the target."""
        if not p:
            return x
        for user in x.users:
            if user.target is drop and user.args[1] == p:
                return user
        with self.graph.inserting_before(self.first if x.op == "placeholder" else x.next):
            return self.call(drop, (x, p, self.graph.get_attr(DROPS)))

    def pair(self, use: TermUse, width: Width, total: fx.Node, x: fx.Node) -> fx.Node:
        """Make ``up(total, down(x, A), B)``, with the factors made in front of everything."""
        with self.graph.inserting_before(self.first):
            a, b = self.factors(use, width, use.scale)
        z = self.call(ops.down, (x, a))
        z.meta[ROWS] = use.rows
        return self.call(ops.up, (total, z, b))

    def looked_up(
        self, lookup: Lookup, use: TermUse, width: Width, total: fx.Node, ids: fx.Node
    ) -> fx.Node:
        """Make ``up(total, look_up(ids, A), B)``; of a head's terms ``up(total, look_up(ids, B), A)``."""
        of_factor, of_product = self.scales(use)
        with self.graph.inserting_before(self.first):
            a, b = self.factors(use, width, of_factor)
        if lookup.swapped:
            a, b = b, a
        given: tuple[Any, ...] = (ids, a, lookup.padding)
        if use.dropout:
            given = (*given, self.dropped(ids, use.dropout, ops.kept_ones))
        z = self.call(ops.look_up, given)
        if lookup.scaled:
            scale, weight = self.graph.get_attr("embed_scale"), self.graph.get_attr("weight")
            z = self.call(ops.times, (z, scale, weight))
        z.meta[ROWS] = use.rows
        return self.call(ops.up, (total, z, b, *of_product))

    def scales(self, use: TermUse) -> tuple[float, tuple[float, ...]]:
        """Return what a factor is multiplied by where an index is looked up, and what the product is."""
        return use.scale, ()

    def update(self, use: TermUse, width: Width, total: fx.Node, x: fx.Node) -> fx.Node:
        """Make ``total + update(x)``, with the tensors in the dtype of x."""
        cast: Any = {
            role: _Shaped(self.call(ops.cast, (tensor.node, x)), tensor.shape, self.tracer)
            for role, tensor in self.of(use).items()
        }
        proxy: Any = fx.Proxy(x, self.tracer)
        with guard(use.transform, "update"):
            delta: Any = update_of(use.transform, proxy, cast, use.rank, width, use.scale)
        return self.call(ops.add, (total, delta.node))


class _FewTerms(_Terms):
    """Writes terms for few tokens: added in place, with nothing cast or scaled as large as a factor."""

    def given(self) -> fx.Node:
        x = self.graph.find_nodes(op="placeholder")[0]
        return self.graph.call_method("tensors", (self.graph.get_attr(FACTORS), x))

    def start(self, target: Target, call: fx.Node) -> fx.Node:
        """Return the result of a layer as one that may be written to."""
        if target.lookup is not None or not any(use.transform.linear for use in target.terms):
            return call
        with self.graph.inserting_before(call.next):
            if call.op == "call_module":
                layer = self.graph.get_attr(str(call.target))
                own = self.call(of_few.linear, (layer, *call.args))
            else:
                own = self.call(torch.clone, (call,))
        call.replace_all_uses_with(own, delete_user_cb=lambda user: user is not own)
        if not call.users:
            self.graph.erase_node(call)
        return own

    def pair(self, use: TermUse, width: Width, total: fx.Node, x: fx.Node) -> fx.Node:
        """Make ``total + s (x A^T) B``."""
        like = self.tensors[0].node
        # What is added to one total is added to it flat.
        y, before = total.args[:2] if total.target is of_few.unflat else (None, total)
        if y is None:
            y = self.call(of_few.flat, (total, like))
        x = self.call(of_few.flat, (x, like))
        if kernels := self.kernels(use, width):
            y = self.call(of_few.add_by_kernels, (y, x, *kernels, use.scale))
        else:
            a, b = self.factors(use, width, 1)
            y = self.call(add, (y, self.call(of_few.down, (x, a)), b, use.scale))
        return self.call(of_few.unflat, (y, before))

    def kernels(self, use: TermUse, width: Width) -> tuple[Any, ...] | None:
        """Return of A and B the kernels, the shared factors and the kernels' columns, if that is all."""
        tensors, found = self.of(use), []
        for role, side in zip("AB", width, strict=True):
            columns = tensors[role].shape[1] if role in tensors else side
            kept = use.transform.kept(role, side, columns)
            if kept is None or kept.kernel is None or kept.rowwise or side % columns:
                return None
            found.append((tensors[kept.kernel].node, tensors[kept.role].node, side // columns))
        return None if {GAIN_RANK, GAIN_OUT} & {*tensors} else tuple(zip(*found, strict=True))

    def scales(self, use: TermUse) -> tuple[float, tuple[float, ...]]:
        # The factor of a tied head is as wide as a vocabulary.
        return 1.0, (use.scale,)
