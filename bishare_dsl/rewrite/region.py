"""Input of the passes: the graphs of a region's forward and of the factors it uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor, fx

from bishare_dsl.rewrite.leaves import base_forward
from bishare_dsl.transforms import Transform, Width

FACTORS = "bishare_factors"
"""The child that a region's forward calls to get the factors."""

DROPOUT_ACTIVE = f"{FACTORS}.dropout_active"
"""Whether dropout is active in terms: in training, unless it is turned off."""

ADDED = "bishare_added"
"""Metadata of a node that a pass has added to the base's graph."""

ROWS = "bishare_rows"
"""Metadata of a node with a tensor ``(..., rows)``: the number of rows of its factor."""


@dataclass(frozen=True)
class TermUse:
    """A term in a region: ``slots`` maps roles to the region's tensors.

    For a magnitude ``scaled`` is the number of preceding terms that it scales; for other terms it is 0.
    """

    transform: Transform
    rank: int
    rows: int
    scale: float
    dropout: float
    slots: tuple[tuple[str, int], ...]
    scaled: int = 0


@dataclass(frozen=True)
class Lookup:
    """How an embedding applies its factors.

    Attributes:
        padding: the index without gradient.
        scaled: whether its output is multiplied by its ``embed_scale``.
        swapped: whether the terms belong to a tied head: the output has rows of ``dW (d_out, d_in)``.
    """

    padding: int | None
    scaled: bool
    swapped: bool


@dataclass(frozen=True)
class Target:
    """A linear layer or embedding by its path in the region; ``""`` if the region is the layer."""

    path: str
    width: Width
    terms: tuple[TermUse, ...]
    lookup: Lookup | None = None


@dataclass
class RegionGraphs:
    """The graphs of a region, changed in place by the passes.

    ``forward`` replaces the region's forward. It calls the child `FACTORS`, which returns the output of
    ``assembly`` for the region's tensors, initially the tensors unchanged. ``linears`` are all children
    that are linear layers, targets or not. ``constants`` are tensors that transforms create themselves: the
    assembly takes them after the region's tensors, and `FACTORS` returns them after these.
    """

    forward: fx.Graph
    assembly: fx.Graph
    linears: frozenset[str]
    constants: list[Tensor] = field(default_factory=list)

    @classmethod
    def start(cls, forward: fx.Graph, tensors: int, linears: Iterable[str] = ()) -> RegionGraphs:
        """Start from the base's forward, with an assembly that returns ``tensors`` tensors."""
        assembly = fx.Graph()
        assembly.output(tuple(assembly.placeholder(f"tensor_{i}") for i in range(tensors)))
        return cls(forward, assembly, frozenset(linears))

    def add_constant(self, value: Tensor) -> int:
        """Add a constant to the assembly's inputs, unless an equal one is there; return its number."""
        for number, constant in enumerate(self.constants):
            if equal_tensors(constant, value):
                return number
        number = len(self.constants)
        self.constants.append(value.detach().clone())
        output = next(node for node in self.assembly.nodes if node.op == "output")
        before = next(node for node in self.assembly.nodes if node.op != "placeholder")
        with self.assembly.inserting_before(before):
            placeholder = self.assembly.placeholder(f"constant_{number}")
        output.args = ((*cast(tuple[fx.Node, ...], output.args[0]), placeholder),)
        return number

    def factors_call(self) -> fx.Node:
        """Find the node of the forward that calls `FACTORS`."""
        calls = self.forward.find_nodes(op="call_module", target=FACTORS)
        return cast(fx.Node, calls[0])

    def factor_nodes(self) -> list[fx.Node]:
        """List the nodes of the forward that depend only on tensors of the adapter."""
        call = self.factors_call()
        factors: dict[fx.Node, None] = {call: None}
        for node in self.forward.nodes:
            inputs = node.all_input_nodes
            if inputs and all(source in factors for source in inputs) and node.op != "output":
                factors[node] = None
        del factors[call]
        return list(factors)


def equal_tensors(one: Tensor, other: Tensor) -> bool:
    """Return whether two constants have the same type, shape and values."""
    alike = one.dtype == other.dtype and one.shape == other.shape and one.device == other.device
    return alike and torch.equal(one, other)


class Pass(Protocol):
    """A step on the graphs: a frozen dataclass whose fields are options. Both graphs are valid afterwards."""

    def run(self, region: RegionGraphs) -> None: ...


def target_calls(forward: fx.Graph) -> Iterator[tuple[str, fx.Node]]:
    """Yield each call of a child in the forward, or of the region if it is a layer, with its path."""
    for node in forward.nodes:
        if node.op == "call_module":
            yield str(node.target), node
        elif node.target is base_forward:
            yield "", node


def read_by(call: fx.Node) -> fx.Node:
    """Return the current input of a target's call."""
    return cast(fx.Node, call.args[1 if call.target is base_forward else 0])
