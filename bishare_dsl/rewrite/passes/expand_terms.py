"""Write the terms into the base's forward, one by one, as the paper's Equation 2 does."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import fx

from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.leaves import base_forward
from bishare_dsl.rewrite.magnify import magnify
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
from bishare_dsl.transforms import Width, guard, term_factors, update_of
from bishare_dsl.transforms.factor import Dense
from bishare_dsl.transforms.magnitude import Magnitude


@dataclass(frozen=True)
class ExpandTerms(Pass):
    """Before: the forward is the base's. After: each target's output has its terms added to it.

    ``y = up(... up(target(x), down(x, A_1), s_1 B_1) ..., down(x, A_n), s_n B_n)``, where each transform
    has put its effective factors into the graph. A term that is not linear in x puts in its update, and
    that is added; a magnitude comes last, and is `magnify` of it all. Of an embedding, x are the one-hot
    rows of its indices, and ``down`` is `ops.look_up`. Terms of one dropout on one input see one mask. A
    layer that is called twice has its terms added to each call.

    Args:
        targets: the linear layers, with their terms.
        shapes: of the region's tensors, by slot.
    """

    targets: tuple[Target, ...]
    shapes: tuple[tuple[int, int], ...]

    def run(self, region: RegionGraphs) -> None:
        graph, targets = region.forward, {target.path: target for target in self.targets}
        base = set(graph.nodes)
        terms = _Terms(graph, self.shapes)
        # In the order of the calls: what one reads has the terms of those before it by then.
        for path, call in list(target_calls(graph)):
            if path in targets:
                terms.add(targets[path], call)
        for node in graph.nodes:
            if node not in base:
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
            given = graph.call_module(FACTORS)
            self.tensors = [
                _Shaped(self.call(operator.getitem, (given, i)), shape, self.tracer)
                for i, shape in enumerate(shapes)
            ]

    def add(self, target: Target, call: fx.Node) -> None:
        """Add the terms of a target to what a call of it gives."""
        x, total = read_by(call), call
        ups: list[fx.Node] = []
        for use in target.terms:
            users = [*total.users]
            with self.graph.inserting_before(total.next):
                if isinstance(use.transform, Magnitude):
                    added = self.magnified(use, call, total, ups[len(ups) - use.scaled :])
                elif target.lookup is not None:
                    added = self.looked_up(target.lookup, use, target.width, total, x)
                else:
                    read = self.dropped(x, use.dropout, ops.dropout)
                    make = self.pair if use.transform.linear else self.update
                    added = make(use, target.width, total, read)
            for user in users:
                user.replace_input_with(total, added)
            total = added
            ups.append(added)

    def of(self, use: TermUse) -> Any:
        """Return the tensors of a term, by role."""
        return {role: self.tensors[slot] for role, slot in use.slots}

    def factors(self, use: TermUse, width: Width) -> tuple[fx.Node, fx.Node]:
        """Make the factors of a term, in front of everything."""
        with self.graph.inserting_before(self.first), guard(use.transform, "factors"):
            a, b = term_factors(use.transform, self.of(use), use.rank, width)
            return self.node(a), self.node(b)

    def node(self, factor: Any) -> fx.Node:
        """Return a factor of proxies as a value of the graph."""
        parts = (self.node(part) if isinstance(part, tuple) else part for part in factor)
        return self.call(
            type(factor), tuple(p.node if isinstance(p, fx.Proxy) else p for p in parts)
        )

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
        """Make ``up(total, down(x, A), B, scale)``, with the factors made in front of everything."""
        a, b = self.factors(use, width)
        z = self.call(ops.down, (x, a))
        z.meta[ROWS] = use.rows
        return self.call(ops.up, (total, z, b, *_scale(use)))

    def looked_up(
        self, lookup: Lookup, use: TermUse, width: Width, total: fx.Node, ids: fx.Node
    ) -> fx.Node:
        """Make ``up(total, look_up(ids, A), B, scale)``; of a head's terms the same with A for B."""
        a, b = self.factors(use, width)
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
        return self.call(ops.up, (total, z, b, *_scale(use)))

    def magnified(self, use: TermUse, call: fx.Node, total: fx.Node, ups: list[fx.Node]) -> fx.Node:
        """Make ``magnify(total, layer, mu)``, with the factors of the terms that ``ups`` add."""
        alone = call.target is base_forward
        layer = call.args[0] if alone else self.graph.get_attr(str(call.target))
        with self.graph.inserting_before(self.first):
            mu = self.node(Dense(self.of(use)["mu"]))
        plain = isinstance(use.transform, Magnitude) and use.transform.is_plain
        terms: list[Any] = [] if plain else [up.args for up in ups]
        downs = tuple(z.args[1] for _, z, *_ in terms)
        scales = tuple(scale[0] if scale else 1.0 for _, _, _, *scale in terms)
        given = (total, layer, mu, downs, tuple(b for _, _, b, *_ in terms), scales)
        return self.call(magnify, given)

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


def _scale(use: TermUse) -> tuple[float, ...]:
    return () if use.scale == 1 else (use.scale,)
