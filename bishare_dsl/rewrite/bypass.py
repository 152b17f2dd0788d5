"""Whether a module computes with a layer's weight itself, so that what is added to the layer is not heard."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from types import FunctionType

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


def reads_tensors(module: nn.Module, child: str) -> bool:
    """Tell whether the forward of `module` computes with the weight or the bias of one of its children.

    Its code is looked at, with the methods that it calls and without branches that its settings rule out;
    what has no source is believed to be harmless.
    """
    cls = base_class(type(module))
    waiting, seen = ["forward"], {*vars(nn.Module)} - {"forward"}
    while waiting:
        name = waiting.pop()
        function = inspect.unwrap(getattr(cls, name, None))  # type: ignore[arg-type]
        if name in seen or not inspect.isfunction(function):
            continue
        seen.add(name)
        tree = _tree(function)
        above = {below: node for node in ast.walk(tree) for below in ast.iter_child_nodes(node)}
        for node in _live(tree, module):
            match node:
                case ast.Attribute(ast.Attribute(ast.Name("self"), attr), "weight" | "bias"):
                    if attr == child and not _only_asks(above.get(node)):
                        return True
                case ast.Attribute(ast.Name("self"), method):
                    waiting.append(method)
    return False


@lru_cache(maxsize=256)
def _tree(function: FunctionType) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):
        return ast.Module([], [])


def _live(node: ast.AST, module: nn.Module) -> Iterator[ast.AST]:
    """Walk over what may run in a module."""
    yield node
    below = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and (holds := _holds(node.test, module)) is not None:
        below = [*(node.body if holds else node.orelse)]
    for child in below:
        yield from _live(child, module)


def _holds(test: ast.expr, module: nn.Module) -> bool | None:
    """Decide a test by the settings of a module; None where they do not."""
    for node in ast.walk(test):
        name = getattr(node, "id", getattr(node, "attr", None))
        if not isinstance(node, _SETTLED) or name == "training":
            return None
    try:
        return bool(eval(compile(ast.Expression(test), "<test>", "eval"), {"self": module}))
    except Exception:  # noqa: BLE001 - it is about something else than settings
        return None


def _only_asks(user: ast.AST | None) -> bool:
    """Tell whether who reads a weight asks for facts about it only."""
    match user:
        case ast.Attribute(_, attr):
            return attr in _FACTS
        case ast.Call(ast.Name(function)):
            return function in _QUESTIONS
        case _:
            return isinstance(user, ast.Compare)
