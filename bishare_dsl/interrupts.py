"""Change a model wholly or not at all, whatever is raised in the middle."""

from __future__ import annotations

import signal
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from bishare_dsl.rewrite.rewritten import change, changes_of

if TYPE_CHECKING:
    from torch import nn

P = ParamSpec("P")
T = TypeVar("T")

CHANGING = threading.RLock()
"""Held while the adapters of a model change."""

_CONTAINERS = (dict, OrderedDict, list, set)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Defer Ctrl-C to the end of the block; other threads than the main thread never receive it."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Undo all that the block changes in a model and its adapters if it raises anything, also Ctrl-C.

    Modules, forwards, attributes, hooks and what trains are as before. Weights are not copied: a handle
    restores those that it has merged, in the function that its `restorer` returns.
    """
    with CHANGING:
        restore = _restorer(model)
        try:
            yield
        except BaseException:
            with uninterrupted():
                restore()
            raise


@contextmanager
def ended_by(leave: Callable[[], object]) -> Iterator[None]:
    """Call ``leave`` at the end of the block, again if it is interrupted: it must not matter how often."""
    try:
        try:
            yield
        finally:
            leave()
    finally:
        leave()


def _restorer(model: nn.Module) -> Callable[[], None]:
    """Return a function that gives a model its present state again."""
    modules = [*model.modules()]
    handles: list[Any] = [module for module in modules if hasattr(module, "restorer")]
    adapters = [adapter for handle in handles for adapter in handle.adapters.values()]
    attributes = [(owner, {**vars(owner)}) for owner in (*modules, *adapters)]
    owned = (value for _, values in attributes for value in values.values())
    contents = [(value, value.copy()) for value in owned if type(value) in _CONTAINERS]
    classes = [(module, changes_of(module)) for module in modules]
    parameters = [(p, p.requires_grad, p.data) for p in model.parameters()]
    weights = [handle.restorer() for handle in handles]

    def restore() -> None:
        lost = [undo() for undo in weights]
        for container, content in (*((vars(owner), v) for owner, v in attributes), *contents):
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
        for module, (code, _, names) in classes:
            if (now := changes_of(module)).code is not code or now.names != names:
                change(module, code=code, names=names)
        for parameter, trains, data in parameters:
            if (parameter.device, parameter.dtype) != (data.device, data.dtype):
                parameter.data = data
            if parameter.requires_grad != trains:
                parameter.requires_grad_(trains)
        for give_up in filter(None, lost):
            give_up()

    return restore


def whole_method(method: Callable[P, T]) -> Callable[P, T]:
    """Make a method of a model, a tuner or a handle change the model wholly or not at all."""

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        owner: Any = args[0]
        with whole(next(iter(vars(owner).get("_model", ())), owner)):
            return method(*args, **kwargs)

    return run
