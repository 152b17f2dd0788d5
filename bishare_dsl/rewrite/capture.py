"""Capture a forward as one graph that is valid for all its variants, or explain why this is impossible.

A trace cannot see a branch on `is None`, and follows only one side of `if self.training`. So the forward
is traced again for each variant, and the graphs are compared:

- An argument that is None must not change the graph, except that a cache's `update` is skipped;
  `leaves.update_cache` decides this at run time.
- Training may change constants (a dropout), which become `leaves.select_training`.

Any other difference makes the region untraceable, so a returned graph is correct for every call. Values
read after an in-place operation have separate nodes (`effects`).
"""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from typing import Any

from torch import fx, nn
from torch.fx.proxy import TraceError

from bishare_dsl.rewrite import leaves
from bishare_dsl.rewrite.effects import order_writes
from bishare_dsl.rewrite.rewritten import has_own_forward
from bishare_dsl.rewrite.signature import graph_signature, is_read
from bishare_dsl.rewrite.trace import RegionTracer, UntraceableRegion, Variant, check_decorators


def capture_region(module: nn.Module, targets: Sequence[str]) -> fx.Graph:
    """Trace the forward of `module`'s class into a graph in which each target is a `call_module` node.

    Args:
        module: a parent of linear layers, such as a `LlamaAttention`. Its weights are not read, so it may
            be on the meta device. An installed graph is ignored.
        targets: the linear layers to be adapted, as paths below `module`, such as `"q_proj"`.

    Returns:
        A graph that fits every module with the same `structure_key`.

    Raises:
        UntraceableRegion: the forward cannot be a graph, or does not call each target with exactly one
            tensor.
    """
    try:
        graph = _capture(module)
        _check_names(graph)
        _check_targets(graph, targets)
    except UntraceableRegion:
        raise
    except Exception as error:  # the linear layers can still be adapted one by one
        kind = "" if isinstance(error, TraceError) else f"{type(error).__name__}: "
        raise UntraceableRegion(kind + str(error).partition("\n")[0]) from error
    return graph


def _check_names(graph: fx.Graph) -> None:
    """Check that each child and attribute has a valid Python name, because torch.fx writes it into code."""
    for node in graph.nodes:
        if node.op == "call_module" or (node.op == "get_attr" and node.target != "bishare_self"):
            for name in node.target.split("."):
                plain = name.isdecimal() or (name.isidentifier() and not keyword.iskeyword(name))
                if not plain or name in ("self", "bishare_self"):
                    raise UntraceableRegion(f"no code can name its child {name!r}")


def _capture(module: nn.Module) -> fx.Graph:
    if has_own_forward(module):
        raise UntraceableRegion("its forward was replaced on the instance")
    check_decorators(module)
    graph = RegionTracer(module, Variant()).trace()
    _merge_training(graph, RegionTracer(module, Variant(training=True)).trace())
    placeholders = [str(node.target) for node in graph.find_nodes(op="placeholder")]
    others = placeholders[1:]  # The first is the input.
    optional = [n for n in others if not n.startswith("*") and _may_be_none(module, graph, n)]
    # Check combinations, because training and absent arguments could depend on each other.
    # `_may_be_none` has checked each absence alone, in eval mode.
    variants = [Variant(frozenset({name}), training=True) for name in optional]
    if len(optional) > 1:
        variants += [Variant(frozenset(optional), training) for training in (False, True)]
    for variant in variants:
        _check_variant(module, graph, variant)
    for node in reversed(graph.nodes):
        # Not `eliminate_dead_code`, which removes calls with side effects.
        if is_read(node) and not node.users:
            graph.erase_node(node)
    order_writes(module, graph)
    graph.lint()
    return graph


def _may_be_none(module: nn.Module, graph: fx.Graph, name: str) -> bool:
    """Tell whether the forward accepts None for an argument; if so, check the graph for this case."""
    try:
        _check_variant(module, graph, Variant(frozenset({name})))
    except Exception as error:
        if "NoneType" not in str(error):
            raise
        return False  # The forward itself fails with None, so this case never occurs.
    return True


def _check_variant(module: nn.Module, graph: fx.Graph, variant: Variant) -> None:
    """Check that the graph is correct for one variant of the forward."""
    traced = RegionTracer(module, variant).trace()
    expected = graph_signature(traced, variant.absent, variant.training)
    if graph_signature(graph, variant.absent, variant.training) != expected:
        who = " and ".join(sorted(variant.absent))
        missing = f"{who} {'is' if len(variant.absent) == 1 else 'are'} None"
        when = f"training without {who}" if variant.training else missing
        raise UntraceableRegion(f"it goes another way when {when}")


def _merge_training(graph: fx.Graph, trained: fx.Graph) -> None:
    """Make `graph`, traced in eval mode, correct in training mode too."""
    nodes = list(graph.nodes)
    others = list(trained.nodes)
    if [(n.op, n.target) for n in nodes] != [(n.op, n.target) for n in others]:
        raise UntraceableRegion("it goes another way in training")
    node_of = dict(zip(others, nodes, strict=True))

    def merge(evaluation: Any, training: Any) -> Any:
        match evaluation, training:
            case (tuple(), tuple()) | (list(), list()) if len(evaluation) == len(training):
                return type(evaluation)(map(merge, evaluation, training))
            case (dict(), dict()) if evaluation.keys() == training.keys():
                return {key: merge(value, training[key]) for key, value in evaluation.items()}
        if type(evaluation) is type(training) and evaluation == training:
            return evaluation
        itself = graph.get_attr("bishare_self")
        return graph.call_function(leaves.select_training, (itself, training, evaluation))

    for node, other in zip(nodes, others, strict=True):
        with graph.inserting_before(node):
            node.args = merge(node.args, fx.node.map_arg(other.args, node_of.__getitem__))
            node.kwargs = merge(node.kwargs, fx.node.map_arg(other.kwargs, node_of.__getitem__))


def _check_targets(graph: fx.Graph, targets: Sequence[str]) -> None:
    for target in targets:
        calls = [n for n in graph.nodes if n.op == "call_module" and n.target == target]
        reads = [
            str(n.target)
            for n in graph.nodes
            if n.op == "get_attr" and f"{n.target}.".startswith(f"{target}.")
        ]
        if not calls:
            raise UntraceableRegion(f"it never calls {target}", target if reads else None)
        for call in calls:
            if len(call.args) != 1 or call.kwargs or not isinstance(call.args[0], fx.Node):
                raise UntraceableRegion(f"it calls {target} with more than one tensor")
        if reads:
            raise UntraceableRegion(f"it reads {reads[0]} and does not only call {target}")
