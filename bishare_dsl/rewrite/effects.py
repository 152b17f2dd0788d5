"""In-place operations in a graph: what is read behind one is not what was read before it.

Passes know a value by its node: layers that read one node read one input, and are called together. So
behind what may write to a value, the layers that read it get a node of their own.
"""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from bishare_dsl.models.weights import linear_widths
from bishare_dsl.rewrite import leaves
from bishare_dsl.rewrite.rewritten import base_class

WRITES = "bishare_writes"
"""Metadata of a node that may write to what it reads."""

_FACTS = frozenset({"shape", "dtype", "device", "ndim"})
_PURE = (
    *("torch", "torch.functional", "torch.nn.functional", "torch._C._nn"),
    *("_operator", "builtins", "math"),
)
_PURE_LEAVES = (leaves.select_training, leaves.shape_of_rank)


def order_writes(module: nn.Module, graph: fx.Graph) -> None:
    """Let linear layers that read one node read the same values, in a graph of the forward of ``module``.

    Where one reads behind an operation that may have written to its input, or to what that is a view of, it
    reads `leaves.behind`, which depends on both. What is not known to leave what it reads as it is may
    write, and what is not known to make something new may give a view of what it reads.
    """
    memory: dict[fx.Node, frozenset[fx.Node]] = {}  # Whose values a node may have.
    written: dict[fx.Node, fx.Node] = {}  # By whom, last.
    again: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
    for node in list(graph.nodes):
        read = frozenset(m for x in node.all_input_nodes for m in memory[x])
        linear = _is_linear(module, node)
        for x in node.all_input_nodes if linear else ():
            writers = [w for m in memory[x] if (w := written.get(m)) and x < w]
            if writers:
                behind = x, max(writers)
                if behind not in again:
                    with graph.inserting_before(node):
                        again[behind] = graph.call_function(leaves.behind, behind)
                node.replace_input_with(x, again[behind])
        if _is_fact(node):
            memory[node] = frozenset()
        elif _module_of(node) == "_operator":
            computes = node.target is not operator.getitem and read
            memory[node] = frozenset({node}) if computes else read
        else:
            memory[node] = read if read and not linear else frozenset({node})
        if _may_write(module, node):
            node.meta[WRITES] = True
            written |= dict.fromkeys(read, node)


def _is_fact(node: fx.Node) -> bool:
    """Tell whether a node gives what nobody can write to."""
    if node.target is getattr:
        return node.args[1] in _FACTS
    return node.target is leaves.shape_of_rank or (node.op, node.target) == ("call_method", "size")


def _is_linear(module: nn.Module, node: fx.Node) -> bool:
    """Tell whether a node calls a linear layer, which gives a tensor that nothing else has."""
    return node.op == "call_module" and linear_widths(_child(module, node)) is not None


def _may_write(module: nn.Module, node: fx.Node) -> bool:
    """Tell whether a node may write to what it reads: all do but those that are known not to."""
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
