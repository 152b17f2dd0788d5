"""Change a model wholly or not at all, whatever is raised in the middle."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar

from bishare_dsl.adapted.interrupts import CHANGING, uninterrupted
from bishare_dsl.rewrite.rewritten import change, changes_of

if TYPE_CHECKING:
    from torch import nn

_T = TypeVar("_T")


def run_whole(model: nn.Module, act: Callable[[], _T]) -> _T:
    """Call ``act``; if it raises anything, also Ctrl-C, undo all that it changed in a model and its adapters.

    Modules, forwards, attributes, hooks and what trains are as before. Weights are not copied: a handle
    restores those that it has merged, in the function that its `restorer` returns.

    It is not a block, which Ctrl-C could leave without its end: the remains of one would restore an inner
    state after an outer one.
    """
    with CHANGING:
        restore = _restorer(model)
        try:
            return act()
        except BaseException:
            with uninterrupted():
                restore()
            raise


def _restorer(model: nn.Module) -> Callable[[], None]:
    """Return a function that gives a model its present state again."""
    modules = [*model.modules()]
    handles: list[Any] = [module for module in modules if hasattr(module, "restorer")]
    adapters = [adapter for handle in handles for adapter in handle.adapters.values()]
    attributes = [(owner, {**vars(owner)}) for owner in (*modules, *adapters)]
    owned = (value for _, values in attributes for value in values.values())
    kinds = {dict, OrderedDict, list, set}
    contents = [(v, v.copy() if v else ()) for v in owned if type(v) in kinds]
    classes = [(module, changes_of(module)) for module in modules]
    parameters = [(p, p.requires_grad, p.data) for p in model.parameters()]
    weights = [handle.restorer() for handle in handles]

    def restore() -> None:
        lost = [undo() for undo in weights]
        for container, content in (*((vars(owner), v) for owner, v in attributes), *contents):
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)
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


def whole_method(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method of a model, a tuner or a handle change the model wholly or not at all."""

    @wraps(method)
    def run(owner: Any, *args: Any, **kwargs: Any) -> Any:
        model = next(iter(vars(owner).get("_model", ())), owner)
        return run_whole(model, partial(method, owner, *args, **kwargs))

    return run
