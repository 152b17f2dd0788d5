"""One graph for all the ways through a forward, or the reason why there is none.

A trace cannot see a branch on `is None`, and sees only one side of `if self.training`. So the
forward is traced again for each way that differs from the ordinary one, and the graphs are compared:

- an argument that is None must leave the graph as it is, save that a cache's `update` falls away;
  that call becomes `leaves.update_cache`, which decides at run time;
- training may change constants (a dropout), which become `leaves.select_training`;
- the attention implementation must change nothing, since `leaves.attend` looks it up at run time: most
  forwards hand it on unseen, which one trace shows; one that compares its name is traced with several.

Anything else that differs makes the region untraceable, so a graph that is returned is right for
every call.
"""

from __future__ import annotations

import copy
import keyword
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from torch import fx, nn
from torch.fx.proxy import TraceError

from bishare_dsl.rewrite import leaves
from bishare_dsl.rewrite.rewritten import has_own_forward
from bishare_dsl.rewrite.signature import graph_signature
from bishare_dsl.rewrite.trace import (
    HIDDEN_RANK,
    BypassedTarget,
    Trace,
    UntraceableRegion,
    Way,
    check_decorators,
    trace_region,
)

# Each is compared for by name in some forward; "other" stands for one that a user registers.
_OTHER_IMPLEMENTATIONS = ("eager", "flash_attention_2", "flex_attention", "other")
_PURE_METHODS = {"size"}
_PURE_FUNCTIONS = {getattr, operator.getitem}


def capture_region(module: nn.Module, targets: Sequence[str]) -> fx.Graph:
    """Make a graph of the forward of `module`'s class, with each call of a target a `call_module` node.

    Args:
        module: a parent of linear layers, such as a `LlamaAttention`; its weights are not read, so
            that it may be on the meta device. A graph installed in it is ignored.
        targets: the linear layers to be adapted, as paths below `module`, such as `"q_proj"`.

    Returns:
        A graph that may be installed in every module with the same `structure_key`.

    Raises:
        UntraceableRegion: the forward cannot be a graph, or it does not call each target, each time
            with one tensor.
    """
    try:
        graph = _capture(module)
        _check_names(graph)
        _check_targets(graph, targets)
    except UntraceableRegion:
        raise
    except Exception as error:  # whatever a forward does, its linears can be adapted one by one
        raise UntraceableRegion(_reason(error)) from error
    return graph


def _check_names(graph: fx.Graph) -> None:
    """See that code can name each child and attribute: torch.fx writes them down as they are."""
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
    way, first = _first(module)
    absences = _check_absences(module, way, first)
    if first.reads_implementation and way.implementation is not None:
        _check_implementations(module, way, first)
    training = replace(way, training=True)
    trained = trace_region(module, training)
    _merge_training(first.graph, trained.graph)
    # Training and absence could depend on each other; the merged graph has to cover that as well.
    for absent in absences:
        _check_same(
            _specialised(first.graph, absent, training=True),
            trace_region(module, replace(training, absent=absent)).graph,
            f"training without {_listed(absent)}",
        )
    if first.reads_rank:
        _insert_rank_check(first.graph)
    _erase_unused_reads(first.graph)
    first.graph.lint()
    return first.graph


def _first(module: nn.Module) -> tuple[Way, Trace]:
    """Trace the way that leaves the least to check."""
    for way in (Way(implementation=None), Way()):
        try:
            return way, trace_region(module, way)
        except Exception:  # noqa: BLE001 - it looks at a name, or a float decides a branch
            continue
    way = Way(floats=False)  # Floats are constants then.
    return way, trace_region(module, way)


def _check_absences(module: nn.Module, way: Way, first: Trace) -> list[frozenset[str]]:
    """Prove the graph right for each argument that may be None, and for all of them at once.

    Calls of `update` on an argument that may be None become `leaves.update_cache` in passing.
    """
    _use_update_cache(first.graph)
    optional: list[str] = []
    for name in list(first.placeholders)[1:]:
        absent = frozenset({name})
        try:
            without = trace_region(module, replace(way, absent=absent))
        except Exception as error:
            if "NoneType" not in str(error):
                raise
            continue  # None is an error of the forward itself, so no call has it
        _check_same(_specialised(first.graph, absent), without.graph, f"{name} is None")
        optional.append(name)
    absences = [frozenset({name}) for name in optional]
    if len(optional) > 1:
        everything = frozenset(optional)
        without = trace_region(module, replace(way, absent=everything))
        _check_same(
            _specialised(first.graph, everything), without.graph, f"{_listed(optional)} are None"
        )
        absences.append(everything)
    return absences


def _check_implementations(module: nn.Module, way: Way, first: Trace) -> None:
    for implementation in _OTHER_IMPLEMENTATIONS:
        other = trace_region(module, replace(way, implementation=implementation))
        _check_same(copy.deepcopy(first.graph), other.graph, f"the attention is {implementation!r}")


def _check_same(expected: fx.Graph, actual: fx.Graph, when: str) -> None:
    """Compare two graphs, both of which may be changed in passing."""
    _use_update_cache(actual)
    for graph in (expected, actual):
        _erase_unused_reads(graph)
    if graph_signature(expected) != graph_signature(actual):
        raise UntraceableRegion(f"it goes another way when {when}")


def _use_update_cache(graph: fx.Graph) -> None:
    """Turn `cache.update(...)` of an argument of the forward into `leaves.update_cache(cache, ...)`."""
    for node in graph.nodes:
        if (node.op, node.target) == ("call_method", "update") and node.args[0].op == "placeholder":
            node.op, node.target = "call_function", leaves.update_cache


def _specialised(graph: fx.Graph, absent: frozenset[str], *, training: bool = False) -> fx.Graph:
    """Copy `graph` as Python would run it when the arguments `absent` are None."""
    graph = copy.deepcopy(graph)
    for node in list(graph.nodes):
        if node.target is leaves.select_training:
            _replace_in_users(node, node.args[1 if training else 2])
            graph.erase_node(node)
        elif node.op == "placeholder" and node.target in absent:
            _specialise_absent(graph, node)
    return graph


def _specialise_absent(graph: fx.Graph, argument: fx.Node) -> None:
    for user in list(argument.users):
        if user.target is leaves.update_cache and user.args[0] is argument:
            for item in list(user.users):
                if item.target is not operator.getitem:
                    raise UntraceableRegion("it does not unpack what the cache returns")
                keys_and_values: tuple[Any, ...] = user.args[1:3]
                item.replace_all_uses_with(keys_and_values[cast(int, item.args[1])])
                graph.erase_node(item)
            graph.erase_node(user)
    _replace_in_users(argument, None)


def _replace_in_users(node: fx.Node, value: Any) -> None:
    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, lambda n: value if n is node else n)
        user.kwargs = fx.node.map_arg(user.kwargs, lambda n: value if n is node else n)


def _merge_training(graph: fx.Graph, trained: fx.Graph) -> None:
    """Make `graph`, traced in eval mode, right in training mode too."""
    _use_update_cache(trained)
    nodes, others = list(graph.nodes), list(trained.nodes)
    if [(n.op, n.target) for n in nodes] != [(n.op, n.target) for n in others]:
        raise UntraceableRegion("it goes another way in training")
    here = dict(zip(others, nodes, strict=True))

    def merge(node: fx.Node, evaluation: Any, training: Any) -> Any:
        if isinstance(training, fx.Node):
            training = here[training]
        if training is evaluation:
            return evaluation
        if type(evaluation) is type(training):
            if isinstance(evaluation, (tuple, list)) and len(evaluation) == len(training):
                return type(evaluation)(map(merge, [node] * len(evaluation), evaluation, training))
            if isinstance(evaluation, dict) and evaluation.keys() == training.keys():
                return {k: merge(node, v, training[k]) for k, v in evaluation.items()}
            if isinstance(evaluation, slice):
                parts = ("start", "stop", "step")
                return slice(
                    *(merge(node, getattr(evaluation, p), getattr(training, p)) for p in parts)
                )
            if not isinstance(evaluation, (fx.Node, tuple, list, dict)) and evaluation == training:
                return evaluation
        with graph.inserting_before(node):
            itself = graph.get_attr("bishare_self")
            return graph.call_function(leaves.select_training, (itself, training, evaluation))

    for node, other in zip(nodes, others, strict=True):
        node.args = tuple(merge(node, a, b) for a, b in zip(node.args, other.args, strict=True))
        node.kwargs = {k: merge(node, v, other.kwargs[k]) for k, v in node.kwargs.items()}


def _erase_unused_reads(graph: fx.Graph) -> None:
    # Not `eliminate_dead_code`, which asserts on a graph without a module, and drops calls that
    # the forward makes for their effect.
    for node in reversed(graph.nodes):
        pure = (
            node.op == "get_attr"
            or (node.op == "call_method" and node.target in _PURE_METHODS)
            or (node.op == "call_function" and node.target in _PURE_FUNCTIONS)
        )
        if pure and not node.users:
            graph.erase_node(node)


def _insert_rank_check(graph: fx.Graph) -> None:
    hidden, *rest = (node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(rest[-1] if rest else hidden):
        checked = graph.call_function(leaves.expect_rank, (hidden, HIDDEN_RANK))
    hidden.replace_all_uses_with(checked, delete_user_cb=lambda user: user is not checked)


def _check_targets(graph: fx.Graph, targets: Sequence[str]) -> None:
    for target in targets:
        calls = [n for n in graph.nodes if n.op == "call_module" and n.target == target]
        reads = [
            str(n.target)
            for n in graph.nodes
            if n.op == "get_attr" and f"{n.target}.".startswith(f"{target}.")
        ]
        if reads and not calls:
            raise BypassedTarget(target)
        if not calls:
            raise UntraceableRegion(f"it never calls {target}")
        for call in calls:
            if len(call.args) != 1 or call.kwargs or not isinstance(call.args[0], fx.Node):
                raise UntraceableRegion(f"it calls {target} with more than one tensor")
        if reads:
            raise UntraceableRegion(f"it reads {reads[0]} and does not only call {target}")


def _listed(names: Sequence[str] | frozenset[str]) -> str:
    return " and ".join(sorted(names))


def _reason(error: Exception) -> str:
    first_line = str(error).partition("\n")[0]
    return first_line if isinstance(error, TraceError) else f"{type(error).__name__}: {first_line}"
