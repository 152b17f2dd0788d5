"""Experts stored in one parameter: compute terms only for the tokens routed to each expert.

The base's forward runs unchanged on a view of the module, whose parameters are `ExpertWeight`s. Such a
tensor computes the parameter's products and adds the terms of the same experts for the same input. This
works with any implementation in transformers: one expert at a time, batched or grouped.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bishare_dsl.diagnostics import BishareWarning
from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.region import FACTORS
from bishare_dsl.rewrite.rewritten import base_class
from bishare_dsl.transforms.factor import Dense, Factor


@dataclass(frozen=True)
class Addition:
    """The update added to the product of an input and the weight of one expert or several.

    Attributes:
        a: ``(rows, d_in)``, or with a leading axis of experts.
        b: ``(rows, d_out)``, or with a leading axis of experts.
        dropout: the fraction of the factor's input to drop.
    """

    a: Tensor
    b: Tensor
    dropout: float

    def at(self, index: Any) -> Addition:
        """Return the addition of one expert, or of one expert for each row."""
        a, b = self._each[index] if isinstance(index, int) else (self.a[index], self.b[index])
        return Addition(a, b, self.dropout)

    @cached_property
    def _each(self) -> Sequence[tuple[Tensor, Tensor]]:
        # Unbind once: the gradient of each index would be as large as all experts.
        return list(zip(self.a.unbind(0), self.b.unbind(0), strict=True))


_Add = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Adds a term to ``y`` from ``x``, A and B."""


class UnknownProductError(Exception):
    """An implementation of experts uses a weight in an operation that terms cannot be added to."""


class ExpertWeight(Tensor):
    """A parameter of experts, or a part of it, that adds terms to its products."""

    plain: Tensor
    additions: tuple[Addition, ...]

    @classmethod
    def of(cls, plain: Tensor, additions: Sequence[Addition]) -> ExpertWeight:
        # Without storage: `torch.export` rejects a second tensor of those it traces.
        weight: ExpertWeight = torch.Tensor._make_wrapper_subclass(
            cls, plain.shape, dtype=plain.dtype, device=plain.device
        )
        weight.plain = plain
        weight.additions = tuple(additions)
        return weight

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        weight = next((arg for arg in args if isinstance(arg, cls)), None)
        if weight is None:
            raise UnknownProductError(f"hands a weight to `{func.__name__}` by keyword")
        name = func.__name__
        if name == "__getitem__" and isinstance(args[1], Tensor) and args[1].dim() == 0:
            return weight._expert(int(args[1]))  # The index would synchronise as well; do it once.
        y = func(*(arg.plain if isinstance(arg, cls) else arg for arg in args), **kwargs)
        if not isinstance(y, Tensor):
            return y
        if name == "__getitem__":
            return cls.of(y, [addition.at(args[1]) for addition in weight.additions])
        if name in ("transpose", "t", "to", "contiguous", "__get__"):
            return cls.of(y, weight.additions)
        is_right = len(args) > 1 and args[1] is weight
        if name in ("linear", "matmul", "__matmul__") and is_right:
            add: _Add = _add_one
        elif name == "bmm":
            add = _add_rows if is_right else _add_columns
        elif name in ("_grouped_mm", "grouped_mm", "grouped_mm_fallback"):
            add = partial(_add_groups, lambda x, w: func(x, w, *args[2:], **kwargs))
        else:
            raise UnknownProductError(f"calls `{name}` with a weight")
        return weight._added(y, args[0] if is_right else args[1], add)

    def _expert(self, number: int) -> Tensor:
        """Return the weight of one expert."""
        # In a mixed batch several numbers share a weight, not additions.
        part = self.plain[number % len(self.plain)]
        additions = [addition.at(number) for addition in self.additions]
        return self.of(part, additions) if additions else part

    def _added(self, y: Tensor, x: Tensor, add: _Add) -> Tensor:
        """Add the terms to a product ``y`` of ``x``."""
        for addition in self.additions:
            read = F.dropout(x, addition.dropout) if addition.dropout else x
            y = add(y, read, addition.a, addition.b)
        return y

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise UnknownProductError(f"calls `{func.__name__}` with a weight")


def _add_one(y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add to ``x W^T`` for one expert."""
    return ops.up(y, ops.down(x, Dense(a)), Dense(b))


def _add_rows(y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add to ``(S, 1, d_in)`` times ``(S, d_in, d_out)``, with a weight for each row."""
    z = Dense(a.to(x)).down(x)
    return Dense(b.to(y)).add_up(torch.clone(y), z.to(y))


def _add_columns(y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add to ``(S, d_out, d_in)`` times ``(S, d_in, 1)``, with a weight for each row."""
    return _add_rows(y.mT, x.mT, a, b).mT


def _add_groups(
    grouped: Callable[[Tensor, Tensor], Tensor], y: Tensor, x: Tensor, a: Tensor, b: Tensor
) -> Tensor:
    """Add to a grouped product, in which consecutive rows of ``x`` belong to consecutive experts."""
    # Kernels require rows of a multiple of 16 bytes.
    a = F.pad(a.to(x), (0, 0, 0, -a.shape[1] % 8))
    b = F.pad(b.to(x), (0, 0, 0, -b.shape[1] % 8))
    return y + grouped(grouped(x, a.mT), b)


# Compiled code would multiply by the weights alone and omit the terms.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def experts_forward(
    module: nn.Module,
    factors: Sequence[Factor],
    parts: Sequence[tuple[str, float]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dropout_active: bool | None = None,
    copies: int = 1,
) -> Any:
    """Run the base's forward of a module of experts, with terms.

    Args:
        factors: for each part ``A (experts, rows, d_in)`` and ``B (experts, rows, d_out)``.
        parts: parameters and their dropouts.
        args: for the base's forward.
        kwargs: for the base's forward.
        dropout_active: whether dropout is active; None to use the adapter's setting.
        copies: the number of copies of each expert, each with separate factors.
    """
    base = base_class(type(module))
    one_by_one = inspect.unwrap(base.forward)
    additions: dict[str, list[Addition]] = {}
    for (parameter, dropout), a, b in zip(parts, factors[::2], factors[1::2], strict=True):
        if dropout and dropout_active is None:
            dropout_active = cast(Any, module.get_submodule(FACTORS)).dropout_active
        addition = Addition(a.dense(), b.dense(), dropout if dropout_active else 0.0)
        additions.setdefault(parameter, []).append(addition)
    weights = {
        name: ExpertWeight.of(getattr(module, name), additions.get(name, ()))
        for name, parameter in module._parameters.items()
        if name in additions or (copies > 1 and parameter is not None)
    }
    view: nn.Module = object.__new__(base)
    # Read from the module, because a tensor of the adapter may replace a bias.
    read = {name: getattr(module, name) for name in module._parameters}
    state = {**vars(module), "_parameters": {**read, **weights}}
    if copies > 1:
        state["num_experts"] *= copies
    object.__setattr__(view, "__dict__", state)
    try:
        # Implementations other than one by one multiply by the weights of all experts.
        forward = base.forward if copies == 1 else one_by_one
        return forward(view, *args, **kwargs)
    except UnknownProductError as error:
        if one_by_one is base.forward:
            raise
        message = f"{base.__name__} runs one expert at a time: its implementation {error}"
        warnings.warn(message, BishareWarning, stacklevel=2)
        return one_by_one(view, *args, **kwargs)
