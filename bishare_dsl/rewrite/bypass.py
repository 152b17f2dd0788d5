"""Whether a module computes with a layer's weight itself, so that what is added to the layer is not heard."""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import lru_cache
from types import FunctionType
from typing import TypeGuard

from torch import nn

from bishare_dsl.rewrite.rewritten import base_class

# What a forward may ask of a weight without computing with it.
_FACTS = frozenset({"dtype", "device", "shape", "ndim", "size", "dim", "is_meta", "requires_grad"})
_QUESTIONS = frozenset({"isinstance", "hasattr", "getattr", "type"})
# What a test consists of that settings of the module decide.
_SETTLED = (
    *(ast.Attribute, ast.Name, ast.Load, ast.Constant),
    *(ast.BoolOp, ast.boolop, ast.UnaryOp, ast.Not, ast.Compare, ast.cmpop),
)


def reads_tensors(model: nn.Module, path: str, child: str) -> bool:
    """Tell whether a module computes, in training or in evaluation, with the weight or the bias of a child.

    Its code is looked at: its forward, the methods that the modules around it call in its stead (as AltUp's
    `predict` and `correct`), and what these call; without branches that its settings rule out. What has no
    source is believed to be harmless.
    """
    called, module = {"forward"}, model
    for name in path.split(".") if path else ():
        for _, live in _reached(module, called):
            called |= {node.attr for node in live if isinstance(node, ast.Attribute)}
        module = module.get_submodule(name)
    return any(_computes(tree, live, child) for tree, live in _reached(module, called))


def _reached(module: nn.Module, called: Set[str]) -> list[tuple[ast.AST, list[ast.AST]]]:
    """List the methods of some names and those that they call, with what of each may run, for each mode."""
    return [code for training in (True, False) for code in _in_mode(module, called, training)]


def _in_mode(
    module: nn.Module, called: Set[str], training: bool
) -> Iterator[tuple[ast.AST, list[ast.AST]]]:
    cls = base_class(type(module))
    waiting, seen = sorted(called), {*vars(nn.Module)} - {"forward"}
    while waiting:
        name = waiting.pop()
        function = inspect.unwrap(getattr(cls, name, None))  # type: ignore[arg-type]
        if name in seen or not inspect.isfunction(function):
            continue
        seen.add(name)
        tree = _tree(function)
        live = [*_live(tree, module, training)]
        yield tree, live
        waiting += [node.attr for node in live if _is_own(node)]


def _computes(tree: ast.AST, live: Sequence[ast.AST], child: str) -> bool:
    """Tell whether code that runs in a module computes with the weight or the bias of a child."""
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
    """Tell whether an expression is an attribute of the module."""
    match node:
        case ast.Attribute(ast.Name("self")):
            return True
    return False


@lru_cache(maxsize=256)
def _tree(function: FunctionType) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):
        return ast.Module([], [])


def _live(node: ast.AST, module: nn.Module, training: bool) -> Iterator[ast.AST]:
    """Walk over what may run in a module."""
    yield node
    below = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and (holds := _holds(node.test, module, training)) is not None:
        below = [*(node.body if holds else node.orelse)]
    for child in below:
        yield from _live(child, module, training)


def _holds(test: ast.expr, module: nn.Module, training: bool) -> bool | None:
    """Decide a test by the settings of a module and its mode; None where they do not."""
    if not all(isinstance(node, _SETTLED) for node in ast.walk(test)):
        return None
    # Only the module itself is asked: its children are in its mode.
    settled = _Mode(training).visit(copy.deepcopy(test))
    try:
        return bool(eval(compile(ast.Expression(settled), "<test>", "eval"), {"self": module}))
    except Exception:  # noqa: BLE001 - it is about something else than settings
        return None


class _Mode(ast.NodeTransformer):
    """Puts a mode in the place of every `training`."""

    def __init__(self, training: bool) -> None:
        self.training = training

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        mode = ast.copy_location(ast.Constant(self.training), node)
        return mode if node.attr == "training" else node


def _only_asks(read: ast.AST, above: Mapping[ast.AST, ast.AST]) -> bool:
    """Tell whether code that reads a weight asks for facts about it only, or changes it and no more."""
    top, user = read, above.get(read)
    match user:
        case ast.Attribute(_, attr) if attr in _FACTS:
            return True
        case ast.Call(ast.Name(function)) if function in _QUESTIONS:
            return True
        case ast.Compare():
            return True
    while isinstance(user, ast.Attribute) or (isinstance(user, ast.Call) and user.func is top):
        top, user = user, above.get(user)
    return isinstance(user, ast.Expr)
