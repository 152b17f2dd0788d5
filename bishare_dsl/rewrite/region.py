"""What the passes work on: a region's forward, and the graph that makes the factors it uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

from torch import fx

from bishare_dsl.rewrite.leaves import base_forward
from bishare_dsl.transforms import Transform, Width

FACTORS = "bishare_factors"
"""The child of a region that its forward calls for the factors."""

DROPS = f"{FACTORS}.drops"
"""Whether terms drop values of their inputs: in training, unless somebody turns dropout off."""

ADDED = "bishare_added"
"""Metadata of a node that is not the base's."""

ROWS = "bishare_rows"
"""Metadata of a node that gives a tensor ``(..., rows)``: how many rows its factor has."""


@dataclass(frozen=True)
class TermUse:
    """A term as a region applies it: ``slots`` says, by role, which of the region's tensors it reads.

    ``scaled`` says of a magnitude how many of the terms before it it scales, and is 0 of others.
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
    """How an embedding reads its factors.

    Attributes:
        padding: the index that gets no gradient.
        scaled: whether what it gives is multiplied by its ``embed_scale``.
        swapped: whether the terms are of a head that it is tied with: it gives rows of ``dW (d_out, d_in)``.
    """

    padding: int | None
    scaled: bool
    swapped: bool


@dataclass(frozen=True)
class Target:
    """A linear layer or embedding of a region, by its path below it; ``""`` where the region is the layer."""

    path: str
    width: Width
    terms: tuple[TermUse, ...]
    lookup: Lookup | None = None


@dataclass
class RegionGraphs:
    """The graphs of a region, changed in place by the passes.

    ``forward`` replaces the region's forward. It calls the child `FACTORS`, which gives what ``assembly``
    makes of the region's tensors: at first the tensors as they are. ``linears`` are the children that are
    linear layers, targets or not.
    """

    forward: fx.Graph
    assembly: fx.Graph
    linears: frozenset[str]

    @classmethod
    def start(cls, forward: fx.Graph, tensors: int, linears: Iterable[str] = ()) -> RegionGraphs:
        """Begin with the base's forward, which does not yet call for its ``tensors`` tensors."""
        assembly = fx.Graph()
        assembly.output(tuple(assembly.placeholder(f"tensor_{i}") for i in range(tensors)))
        return cls(forward, assembly, frozenset(linears))

    def factors_call(self) -> fx.Node:
        """Find the node of the forward that calls for the factors."""
        calls = self.forward.find_nodes(op="call_module", target=FACTORS)
        return cast(fx.Node, calls[0])

    def factor_nodes(self) -> list[fx.Node]:
        """List the nodes of the forward that depend on tensors of the adapter and on nothing else."""
        call = self.factors_call()
        found: dict[fx.Node, None] = {call: None}
        for node in self.forward.nodes:
            inputs = node.all_input_nodes
            if inputs and all(source in found for source in inputs) and node.op != "output":
                found[node] = None
        del found[call]
        return list(found)


class Pass(Protocol):
    """One step: a frozen dataclass whose fields are its options. Both graphs are valid after it."""

    def run(self, region: RegionGraphs) -> None: ...


def target_calls(forward: fx.Graph) -> Iterator[tuple[str, fx.Node]]:
    """Yield each call of a child in the forward, or of the region where that is a layer, with its path."""
    for node in forward.nodes:
        if node.op == "call_module":
            yield str(node.target), node
        elif node.target is base_forward:
            yield "", node


def read_by(call: fx.Node) -> fx.Node:
    """Return the tensor that a target is called on, as the graph has it now."""
    return cast(fx.Node, call.args[1 if call.target is base_forward else 0])
