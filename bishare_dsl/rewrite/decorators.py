"""Put a new function inside the decorators of an old one.

transformers decorates forwards (`deprecate_kwarg` renames arguments), and a generated forward must behave
the same. A decorator made with `functools.wraps` keeps the wrapped function in a closure cell. A copy
with another function in that cell is the same decorator around the new function.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any


class UnknownDecorator(Exception):
    """A decorator without the wrapped function in a closure cell."""


def rewrap(decorated: Callable[..., Any], function: types.FunctionType) -> types.FunctionType:
    """Put `function` inside the decorators of `decorated`, with its name, annotations and docstring.

    With equal parameters it then has the same signature, which Trainer and generate() inspect. (Do not
    set `__signature__`: accelerate would copy it, including `self`, to a bound forward.)

    Raises:
        UnknownDecorator: a decorator cannot be copied, for example because it is a class.
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
    # Code with the same cells except one is the same decorator, if it reaches the wrapped function
    # through that cell. `__wrapped__` identifies the cell. If no cell or several contain it, the
    # check above rejects the decorator, because its callee is unknown.
    closure = (
        types.CellType(new) if hold else cell for hold, cell in zip(holds, cells, strict=True)
    )
    copy = types.FunctionType(decorated.__code__, decorated.__globals__, closure=tuple(closure))
    copy.__defaults__ = decorated.__defaults__
    copy.__kwdefaults__ = decorated.__kwdefaults__
    copy.__dict__.update(decorated.__dict__)
    copy.__wrapped__ = new  # type: ignore[attr-defined]
    return copy
