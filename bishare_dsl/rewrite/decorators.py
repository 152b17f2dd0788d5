"""Put a new function inside the decorators of an old one.

transformers decorates forwards (`deprecate_kwarg` renames arguments), and a generated forward must
behave the same. A decorator made with `functools.wraps` keeps the function it wraps in a closure
cell; a copy of it with another function in that cell is the same decorator round the new function.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any


class UnknownDecorator(Exception):
    """A decorator that does not hold what it wraps in a closure cell."""


def rewrap(decorated: Callable[..., Any], function: types.FunctionType) -> types.FunctionType:
    """Put `function` inside the decorators of `decorated`, with its name, annotations and docstring.

    With the same parameters it then has the same signature, which Trainer and generate() ask for.
    (Not by `__signature__`: accelerate would copy that, `self` and all, on to a bound forward.)

    Raises:
        UnknownDecorator: one of the decorators is a class, say, so that it cannot be copied.
    """
    result = _rewrap(decorated, function)
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
        value = getattr(inspect.unwrap(decorated), name)
        setattr(function, name, value)
        setattr(result, name, value)
    return result


def _rewrap(decorated: Callable[..., Any], function: types.FunctionType) -> types.FunctionType:
    inner = getattr(decorated, "__wrapped__", None)
    if inner is None:
        return function
    new = _rewrap(inner, function)
    if not isinstance(decorated, types.FunctionType):
        raise UnknownDecorator(f"{decorated!r} is not a function")
    cells = decorated.__closure__ or ()
    holds = [cell.cell_contents is inner for cell in cells]
    if holds.count(True) != 1:
        raise UnknownDecorator(f"{decorated.__code__.co_qualname} hides what it wraps")
    # The same code with the same cells but one is the same decorator, whatever it does, as long as it reaches
    # what it wraps through that cell. `__wrapped__` says which cell that is; if no cell or several hold it,
    # there is no telling what the decorator would call, and it is refused above.
    closure = (
        types.CellType(new) if hold else cell for hold, cell in zip(holds, cells, strict=True)
    )
    copy = types.FunctionType(decorated.__code__, decorated.__globals__, closure=tuple(closure))
    copy.__defaults__, copy.__kwdefaults__ = decorated.__defaults__, decorated.__kwdefaults__
    copy.__dict__.update(decorated.__dict__)
    copy.__wrapped__ = new  # type: ignore[attr-defined]
    return copy
