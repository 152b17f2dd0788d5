"""Add the terms to the base's forward, one by one, as in the paper's Equation 2."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.leaves import base_forward
from bishare_dsl.rewrite.magnify import magnify
from bishare_dsl.rewrite.region import (
    ADDED,
    DROPOUT_ACTIVE,
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
from bishare_dsl.transforms.shipped.magnitude import Magnitude


@dataclass(frozen=True)
class ExpandTerms(Pass):
    """Before: the forward is the base's. After: each target's terms are added to its output.

    ``y = up(... up(target(x), down(x, A_1), s_1 B_1) ..., down(x, A_n), s_n B_n)``, where the transforms
    compute the effective factors in the graph. A term that is not linear in x adds its update instead. A
    magnitude comes last, and applies `magnify` to the sum. For an embedding, x are the one-hot rows of
    its indices, and ``down`` is `ops.look_up`. Terms with equal dropout on one input share a mask. If a
    layer is called twice, its terms are added to each call.

    Args:
        targets: the linear layers, with their terms.
        shapes: the shapes of the region's tensors, by slot.
    """

    targets: tuple[Target, ...]
    shapes: tuple[tuple[int, int], ...]

    def run(self, region: RegionGraphs) -> None:
        graph = region.forward
        targets = {target.path: target for target in self.targets}
        base = set(graph.nodes)
        terms = _Terms(region, self.shapes)
        # In call order: inputs computed by earlier calls then already include those calls' terms.
        for path, call in list(target_calls(graph)):
            if path in targets:
                terms.add(targets[path], call)
        for node in graph.nodes:
            if node not in base:
                node.meta[ADDED] = True


class _Shaped(fx.Proxy):
    """A proxy of a tensor with a known shape, so that slices of it have constant bounds.

    Transforms are written with plain tensor methods, so proxies can replace tensors.
    """

    def __init__(self, node: fx.Node, shape: tuple[int, int], tracer: fx.proxy.TracerBase):
        super().__init__(node, tracer)
        self.shape = shape


class _Tracer(fx.proxy.GraphAppendingTracer):
    """Records what transforms compute, and lifts the tensors that they create themselves.

    A graph's code cannot contain a tensor. So a constant becomes one more tensor that the region's factors
    return, and a buffer of the module that computes them, which moves with the model.
    """

    def __init__(self, terms: _Terms) -> None:
        super().__init__(terms.graph)
        self.terms = terms

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor):
            return self.terms.constant(a)
        return super().create_arg(a)


class _Terms:
    """Adds terms to a forward.

    Attributes:
        first: the first computing node; factors are computed before it.
        tensors: the region's tensors, by slot.
    """

    def __init__(self, region: RegionGraphs, shapes: tuple[tuple[int, int], ...]) -> None:
        graph = region.forward
        self.region = region
        self.graph = graph
        self.call = graph.call_function
        self.constants: dict[int, fx.Node] = {}
        self.input: fx.Node | None = None  # of the update that is not linear, while it is traced
        self.first = next(node for node in graph.nodes if node.op != "placeholder")
        # Use one tracer, because torch does not mix proxies of several.
        self.tracer = _Tracer(self)
        with graph.inserting_before(self.first):
            self.returned = graph.call_module(FACTORS)
            self.tensors = [
                _Shaped(self.call(operator.getitem, (self.returned, i)), shape, self.tracer)
                for i, shape in enumerate(shapes)
            ]

    def add(self, target: Target, call: fx.Node) -> None:
        """Add the terms of a target to the result of a call of it."""
        x = read_by(call)
        total = call
        ups: list[fx.Node] = []
        for use in target.terms:
            users = [*total.users]
            with self.graph.inserting_before(total.next):
                if isinstance(use.transform, Magnitude):
                    added = self.magnified(use, call, total, ups[len(ups) - use.scaled :])
                elif target.lookup is not None:
                    added = self.looked_up(target.lookup, use, target.width, total, x)
                else:
                    dropped = self.dropped(x, use.dropout, ops.dropout)
                    make = self.pair if use.transform.linear else self.update
                    added = make(use, target.width, total, dropped)
            for user in users:
                user.replace_input_with(total, added)
            total = added
            ups.append(added)

    def constant(self, value: torch.Tensor) -> fx.Node:
        """Return the node of a constant, next to the region's tensors."""
        number = self.region.add_constant(value)
        if number not in self.constants:
            index = len(self.tensors) + number
            with self.graph.inserting_after(self.returned):
                self.constants[number] = self.call(operator.getitem, (self.returned, index))
        constant = self.constants[number]
        return (
            constant if self.input is None else self.call(ops.cast_constant, (constant, self.input))
        )

    def of(self, use: TermUse) -> Any:
        """Return the tensors of a term, by role."""
        return {role: self.tensors[slot] for role, slot in use.slots}

    def factors(self, use: TermUse, width: Width) -> tuple[fx.Node, fx.Node]:
        """Compute the factors of a term, at the start of the graph."""
        with self.graph.inserting_before(self.first), guard(use.transform, "factors"):
            a, b = term_factors(use.transform, self.of(use), use.rank, width)
            return self.node(a), self.node(b)

    def node(self, factor: Any) -> fx.Node:
        """Convert a factor of proxies to a node of the graph."""
        parts = (self.node(part) if isinstance(part, tuple) else part for part in factor)
        values: list[Any] = []
        for part in parts:
            if isinstance(part, fx.Proxy):
                values.append(part.node)
            elif isinstance(part, torch.Tensor):
                values.append(self.constant(part))
            else:
                values.append(part)
        return self.call(type(factor), tuple(values))

    def dropped(self, x: fx.Node, p: float, drop: Any) -> fx.Node:
        """Return the one dropout of an input, next to the input: a sibling may read it before the target."""
        if not p:
            return x
        for user in x.users:
            if user.target is drop and user.args[1] == p:
                return user
        with self.graph.inserting_before(self.first if x.op == "placeholder" else x.next):
            return self.call(drop, (x, p, self.graph.get_attr(DROPOUT_ACTIVE)))

    def pair(self, use: TermUse, width: Width, total: fx.Node, x: fx.Node) -> fx.Node:
        """Create ``up(total, down(x, A), B, scale)``, with the factors at the start of the graph."""
        a, b = self.factors(use, width)
        z = self.call(ops.down, (x, a))
        z.meta[ROWS] = use.rows
        return self.call(ops.up, (total, z, b, *_scale(use)))

    def looked_up(
        self, lookup: Lookup, use: TermUse, width: Width, total: fx.Node, ids: fx.Node
    ) -> fx.Node:
        """Create ``up(total, look_up(ids, A), B, scale)``; for a tied head's terms A and B are swapped."""
        a, b = self.factors(use, width)
        if lookup.swapped:
            a, b = b, a
        args: tuple[Any, ...] = (ids, a, lookup.padding)
        if use.dropout:
            args = (*args, self.dropped(ids, use.dropout, ops.kept_ones))
        z = self.call(ops.look_up, args)
        if lookup.scaled:
            scale = self.graph.get_attr("embed_scale")
            weight = self.graph.get_attr("weight")
            z = self.call(ops.times, (z, scale, weight))
        z.meta[ROWS] = use.rows
        return self.call(ops.up, (total, z, b, *_scale(use)))

    def magnified(self, use: TermUse, call: fx.Node, total: fx.Node, ups: list[fx.Node]) -> fx.Node:
        """Create ``magnify(total, layer, mu)``, with the factors of the terms in ``ups``."""
        alone = call.target is base_forward
        layer = call.args[0] if alone else self.graph.get_attr(str(call.target))
        with self.graph.inserting_before(self.first):
            mu = self.node(Dense(self.of(use)["mu"]))
        plain = isinstance(use.transform, Magnitude) and use.transform.is_plain
        terms: list[Any] = [] if plain else [up.args for up in ups]
        downs = tuple(z.args[1] for _, z, *_ in terms)
        scales = tuple(scale[0] if scale else 1.0 for _, _, _, *scale in terms)
        args = (total, layer, mu, downs, tuple(b for _, _, b, *_ in terms), scales)
        return self.call(magnify, args)

    def update(self, use: TermUse, width: Width, total: fx.Node, x: fx.Node) -> fx.Node:
        """Create ``total + update(x)``, with the tensors in the dtype of x."""
        cast: Any = {
            role: _Shaped(self.call(ops.cast, (tensor.node, x)), tensor.shape, self.tracer)
            for role, tensor in self.of(use).items()
        }
        proxy: Any = fx.Proxy(x, self.tracer)
        self.input = x
        with guard(use.transform, "update"):
            delta: Any = update_of(use.transform, proxy, cast, use.rank, width, use.scale)
        self.input = None
        return self.call(ops.add, (total, delta.node))


def _scale(use: TermUse) -> tuple[float, ...]:
    return () if use.scale == 1 else (use.scale,)
