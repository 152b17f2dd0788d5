"""Functions that a traced graph calls at run time in place of branches and lookups.

Every function here can be imported by name, so graphs that call it can be pickled. Module-level functions
are looked up in their module at each call, as in the original forward. Kernel libraries that patch
`transformers.models.llama.modeling_llama` therefore keep working.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Keywords that pass a forward's whole `**kwargs` or `*args` as one argument of a node.
OPAQUE_KWARGS = "opaque_kwargs"
OPAQUE_ARGS = "opaque_args"


def call_global(
    module_name: str,
    name: str,
    /,
    *args: Any,
    opaque_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Call the function `name` of the Python module `module_name`, looked up now."""
    return getattr(sys.modules[module_name], name)(*args, **kwargs, **(opaque_kwargs or {}))


def call_child(
    child: nn.Module, /, *args: Any, opaque_kwargs: Mapping[str, Any], **kwargs: Any
) -> Any:
    """Call a child module that takes the forward's own `**kwargs`."""
    return child(*args, **kwargs, **opaque_kwargs)


def attend(
    module_name: str,
    eager: str,
    implementation: str,
    /,
    *args: Any,
    opaque_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Call the attention named by `implementation`, so that a later `set_attn_implementation` works.

    Args:
        module_name: the modeling module, whose `ALL_ATTENTION_FUNCTIONS` is used.
        eager: the name of that module's eager attention.
        implementation: the configuration's current value, such as `"sdpa"`.
    """
    modeling = sys.modules[module_name]
    choose = modeling.ALL_ATTENTION_FUNCTIONS.get_interface
    return choose(implementation, getattr(modeling, eager))(
        *args, **kwargs, **(opaque_kwargs or {})
    )


def update_cache(
    cache: Any, keys: Tensor, values: Tensor, /, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Return the keys and values to attend to: after updating the cache, or unchanged without a cache."""
    if cache is None:
        return keys, values
    updated: tuple[Tensor, Tensor] = cache.update(keys, values, *args, **kwargs)
    return updated


def select_training(module: nn.Module, training: Any, evaluation: Any, /) -> Any:
    """Return `training` in training mode, `evaluation` in eval mode."""
    return training if module.training else evaluation


def augment(name: str, value: Any, other: Any, /) -> Any:
    """Run an augmented assignment, such as ``value += other``, and return the new value.

    Args:
        name: of the function in `operator`.
    """
    return getattr(operator, name)(value, other)


def after_write(value: Any, written: Any, /) -> Any:
    """Return ``value`` after a possible write; ``written`` is the writer's result."""
    return value


def shape_of_rank(hidden_states: Tensor, rank: int, /) -> torch.Size:
    """Return the shape of `hidden_states`, after checking its rank against the traced rank.

    Raises:
        ValueError: the rank differs.
    """
    if hidden_states.dim() != rank:
        raise ValueError(
            f"this layer was rewritten for hidden states with {rank} dimensions "
            f"(batch, tokens, width), and got {hidden_states.dim()}"
        )
    return hidden_states.shape


def base_forward(
    module: nn.Module,
    /,
    *args: Any,
    opaque_args: Iterable[Any] = (),
    opaque_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Run the forward that `module` had before it was rewritten."""
    forward = module.bishare_base.forward  # type: ignore[union-attr]
    return forward(module, *args, *opaque_args, **kwargs, **(opaque_kwargs or {}))
