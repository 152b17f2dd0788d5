"""Whether a module computes with a layer's weight itself, so that what is added to the layer is not heard."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import lru_cache

from torch import nn

from bishare_dsl.rewrite.rewritten import base_class

# What a forward may ask of a weight without computing with it.
_FACTS = frozenset({"dtype", "device", "shape", "ndim", "size", "dim", "is_meta", "requires_grad"})
_QUESTIONS = frozenset({"isinstance", "hasattr", "getattr", "type"})


def reads_tensors(module: nn.Module, child: str) -> bool:
    """Tell whether the forward of `module` computes with the weight or the bias of one of its children.

    Its code is looked at, with the methods that it calls; what has no source is believed to be harmless.
    """
    return child in _read_by(base_class(type(module)))  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def _read_by(cls: type[nn.Module]) -> frozenset[str]:
    """Find the children whose tensors the forward of a class computes with."""
    found: set[str] = set()
    waiting, seen = ["forward"], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or (name in vars(nn.Module) and name != "forward"):
            continue
        seen.add(name)
        try:
            source = inspect.getsource(inspect.unwrap(getattr(cls, name)))
            tree = ast.parse(textwrap.dedent(source))
        except (OSError, TypeError, SyntaxError, AttributeError):
            continue
        found.update(_reads(tree))
        called = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and _is_self(n.value))
        waiting += [n.attr for n in called if inspect.isfunction(getattr(cls, n.attr, None))]
    return frozenset(found)


def _reads(tree: ast.AST) -> Iterator[str]:
    above = {below: node for node in ast.walk(tree) for below in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(ast.Attribute(owner, child), "weight" | "bias") if _is_self(owner):
                user = above.get(node)
                harmless = (
                    (isinstance(user, ast.Attribute) and user.attr in _FACTS)
                    or (isinstance(user, ast.Call) and _name(user.func) in _QUESTIONS)
                    or isinstance(user, ast.Compare)
                )
                if not harmless:
                    yield child


def _is_self(node: ast.AST) -> bool:
    return _name(node) == "self"


def _name(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else None
