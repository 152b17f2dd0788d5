"""Order reads after in-place writes, so that passes do not merge them.

Passes identify a value with its node: layers that read one node are assumed to read one input, and are
called together. After a possible write, the layers that read the value therefore get a separate node.
"""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from bishare_dsl.models.weights import linear_widths
from bishare_dsl.rewrite import leaves
from bishare_dsl.rewrite.rewritten import base_class

WRITES = "bishare_writes"
"""Metadata of a node that may write to its inputs."""

_FACTS = frozenset({"shape", "dtype", "device", "ndim"})
_PURE = (
    *("torch", "torch.functional", "torch.nn.functional", "torch._C._nn"),
    *("_operator", "builtins", "math"),
)
_PURE_LEAVES = (leaves.select_training, leaves.shape_of_rank)


def order_writes(module: nn.Module, graph: fx.Graph) -> None:
    """Ensure that linear layers that read one node read the same values, in a graph of ``module``'s forward.

    A layer that reads a possibly mutated value gets its own node, `leaves.after_write`, which depends on the
    value and on the writer. Unknown operations are assumed to mutate their inputs and to return views of
    them.
    """
    memory: dict[fx.Node, frozenset[fx.Node]] = {}  # Values that a node may alias.
    written: dict[fx.Node, fx.Node] = {}  # The last writer of each value.
    after_write: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
    for node in list(graph.nodes):
        read = frozenset().union(*(memory[x] for x in node.all_input_nodes))
        is_linear = _is_linear(module, node)
        if is_linear:
            for x in node.all_input_nodes:
                writers = [written[value] for value in memory[x] if value in written]
                later = [writer for writer in writers if x < writer]
                if not later:
                    continue
                value_and_writer = x, max(later)
                if value_and_writer not in after_write:
                    with graph.inserting_before(node):
                        after_write[value_and_writer] = graph.call_function(
                            leaves.after_write, value_and_writer
                        )
                node.replace_input_with(x, after_write[value_and_writer])
        memory[node] = _aliases(node, read, is_linear=is_linear)
        if _may_write(module, node):
            node.meta[WRITES] = True
            written |= dict.fromkeys(read, node)


def _aliases(node: fx.Node, read: frozenset[fx.Node], *, is_linear: bool) -> frozenset[fx.Node]:
    """Return the values that a node may alias; ``read`` are those of its inputs."""
    if _is_fact(node):
        return frozenset()
    if _module_of(node) == "_operator":
        # Operators compute new values, except indexing. An operator on facts has none to write to.
        return frozenset({node}) if read and node.target is not operator.getitem else read
    return frozenset({node}) if is_linear or not read else read


def _is_fact(node: fx.Node) -> bool:
    """Tell whether a node returns metadata, which cannot be written to."""
    if node.target is getattr:
        return node.args[1] in _FACTS
    return node.target is leaves.shape_of_rank or (node.op, node.target) == ("call_method", "size")


def _is_linear(module: nn.Module, node: fx.Node) -> bool:
    """Tell whether a node calls a linear layer, which returns a new tensor."""
    return node.op == "call_module" and linear_widths(_child(module, node)) is not None


def _may_write(module: nn.Module, node: fx.Node) -> bool:
    """Tell whether a node may write to its inputs; assume so unless it is known to be pure."""
    name = str(getattr(node.target, "__name__", node.target))
    if node.kwargs.get("inplace") or "out" in node.kwargs or name.endswith("_"):
        return True
    match node.op:
        case "call_module":
            below = _child(module, node).modules()
            return not _is_linear(module, node) and any(map(_module_writes, below))
        case "call_method":
            return not hasattr(torch.Tensor, name)
        case "call_function":
            return node.target not in _PURE_LEAVES and _module_of(node) not in _PURE
    return False


def _module_writes(child: nn.Module) -> bool:
    known = base_class(type(child)).__module__.startswith(("torch.nn.", "transformers.activations"))
    return not known or getattr(child, "inplace", False)


def _module_of(node: fx.Node) -> str | None:
    return getattr(node.target, "__module__", None) if node.op == "call_function" else None


def _child(module: nn.Module, node: fx.Node) -> nn.Module:
    return module.get_submodule(str(node.target))
