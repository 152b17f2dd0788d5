"""Change a model wholly or not at all, whatever is raised in the middle."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from bishare_dsl.adapted.interrupts import CHANGING, uninterrupted
from bishare_dsl.rewrite.rewritten import change, changes_of

if TYPE_CHECKING:
    import torch
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
    owners: list[Any] = list(modules)
    for handle in handles:
        owners.extend(handle.adapters.values())
    containers = _containers_of(owners)
    classes = [(module, changes_of(module)) for module in modules]
    parameters = [_Parameter(p, p.requires_grad, p.data) for p in model.parameters()]
    weights = [handle.restorer() for handle in handles]

    def restore() -> None:
        lost = [undo() for undo in weights]
        for container in containers:
            container.restore()
        for module, (code, _, names) in classes:
            now = changes_of(module)
            if now.code is not code or now.names != names:
                change(module, code=code, names=names)
        for parameter in parameters:
            parameter.restore()
        for give_up in lost:
            if give_up:
                give_up()

    return restore


class _Container(NamedTuple):
    """A container, such as the attributes of a module, and its contents."""

    container: Any
    contents: Any

    def restore(self) -> None:
        """Give the container its contents again."""
        self.container.clear()
        if isinstance(self.container, list):
            self.container.extend(self.contents)
        else:
            self.container.update(self.contents)


def _containers_of(owners: Iterable[Any]) -> list[_Container]:
    """Return the attributes of modules and adapters, and the containers among them."""
    attributes = [_Container(vars(owner), {**vars(owner)}) for owner in owners]
    kinds = {dict, OrderedDict, list, set}
    containers = [*attributes]
    for of_owner in attributes:
        values = [value for value in of_owner.contents.values() if type(value) in kinds]
        containers.extend(_Container(value, value.copy() if value else ()) for value in values)
    return containers


class _Parameter(NamedTuple):
    """A parameter, and how it was."""

    parameter: nn.Parameter
    requires_grad: bool
    data: torch.Tensor

    def restore(self) -> None:
        """Give the parameter its place, its type and its `requires_grad` again."""
        parameter = self.parameter
        if (parameter.device, parameter.dtype) != (self.data.device, self.data.dtype):
            parameter.data = self.data
        if parameter.requires_grad != self.requires_grad:
            parameter.requires_grad_(self.requires_grad)


def whole_method(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method of a model, a tuner or a handle change the model wholly or not at all."""

    @wraps(method)
    def run(owner: Any, *args: Any, **kwargs: Any) -> Any:
        model = next(iter(vars(owner).get("_model", ())), owner)
        return run_whole(model, partial(method, owner, *args, **kwargs))

    return run
