"""Detect parents that read `child.weight` directly, bypassing a rewritten forward."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import lru_cache, partial
from types import FunctionType, MethodType
from typing import Any, TypeGuard

from torch import nn

from bishare_dsl.models.hooks import own_forward
from bishare_dsl.rewrite.rewritten import base_class, has_own_forward

# Metadata that a forward may read from a weight without computing with it.
_FACTS = frozenset({"dtype", "device", "shape", "ndim", "size", "dim", "is_meta", "requires_grad"})
_QUESTIONS = frozenset({"isinstance", "hasattr", "getattr", "type"})
# Syntax of conditions that depend on the module's settings only.
_SETTLED = (
    *(ast.Attribute, ast.Name, ast.Load, ast.Constant),
    *(ast.BoolOp, ast.boolop, ast.UnaryOp, ast.Not, ast.Compare, ast.cmpop),
)


def reads_tensors(model: nn.Module, path: str, child: str) -> bool:
    """Tell whether a module computes with the weight or bias of a child, in training or evaluation.

    This inspects the source of the module's forward, of methods that enclosing modules call instead (such
    as AltUp's `predict` and `correct`), and of methods called by these. Branches that its settings
    exclude are skipped. Code without source is assumed to be harmless.
    """
    called = {"forward"}
    module = model
    names = path.split(".") if path else []
    for name in names:
        for _, live in _reached(module, called):
            called |= {node.attr for node in live if isinstance(node, ast.Attribute)}
        module = module.get_submodule(name)
    return any(_computes(tree, live, child) for tree, live in _reached(module, called))


def _reached(module: nn.Module, called: Set[str]) -> Iterator[tuple[ast.AST, list[ast.AST]]]:
    """Yield the named methods and those that they call, with the code of each that may run."""
    cls = base_class(type(module))
    waiting = sorted(called)
    seen = {*vars(nn.Module)} - {"forward"}
    while waiting:
        name = waiting.pop()
        function = getattr(cls, name, None)
        if name == "forward" and has_own_forward(module):
            function = _function_of(own_forward(module))
        function = inspect.unwrap(function)  # type: ignore[arg-type]
        if name in seen or not inspect.isfunction(function):
            continue
        seen.add(name)
        tree = _tree(function)
        live = [*_live(tree, module)]
        yield tree, live
        waiting += [node.attr for node in live if _is_own(node)]


def _computes(tree: ast.AST, live: Sequence[ast.AST], child: str) -> bool:
    """Tell whether code that runs in a module computes with the weight or bias of a child."""
    above = {below: node for node in ast.walk(tree) for below in ast.iter_child_nodes(node)}
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in ("weight", "bias")
        and _is_own(node.value)
        and node.value.attr == child
        and not _only_asks(node, above)
        for node in live
    )


def _is_own(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """Tell whether an expression is an attribute of `self`."""
    value = node.value if isinstance(node, ast.Attribute) else None
    return isinstance(value, ast.Name) and value.id == "self"


def _function_of(forward: Any) -> Any:
    """Return the function that a forward set on an instance calls, below methods and partial calls."""
    while isinstance(forward, (MethodType, partial)):
        forward = forward.__func__ if isinstance(forward, MethodType) else forward.func
    return forward


@lru_cache(maxsize=256)
def _tree(function: FunctionType) -> ast.AST:
    """Parse a function, with its first parameter as ``self``."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):
        return ast.Module([], [])
    first = function.__code__.co_varnames[:1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in first:
            node.id = "self"
    return tree


def _live(node: ast.AST, module: nn.Module) -> Iterator[ast.AST]:
    """Walk over the code that may run in a module."""
    yield node
    below = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and (holds := _holds(node.test, module)) is not None:
        below = [*(node.body if holds else node.orelse)]
    for child in below:
        yield from _live(child, module)


def _holds(test: ast.expr, module: nn.Module) -> bool | None:
    """Evaluate a condition from the module's settings; None if they do not determine it in both modes."""
    if not all(isinstance(node, _SETTLED) for node in ast.walk(test)):
        return None
    text = ast.unparse(test)
    try:
        in_modes = {
            # A child is in the mode of its parent.
            bool(eval(re.sub(r"\bself(\.\w+)*\.training\b", mode, text), {"self": module}))
            for mode in ("True", "False")
        }
    except Exception:  # noqa: BLE001 - it depends on more than settings
        return None
    return None if len(in_modes) > 1 else in_modes.pop()


def _only_asks(read: ast.AST, above: Mapping[ast.AST, ast.AST]) -> bool:
    """Tell whether code that reads a weight only reads metadata, or only modifies the weight."""
    top = read
    user = above.get(read)
    match user:
        case ast.Attribute(_, attr) if attr in _FACTS:
            return True
        case ast.Call(ast.Name(function)) if function in _QUESTIONS:
            return True
        case ast.Compare():
            return True
    while isinstance(user, ast.Attribute) or (isinstance(user, ast.Call) and user.func is top):
        top = user
        user = above.get(user)
    return isinstance(user, ast.Expr)
