"""An optimizer's state by the names of the adapter's tensors: for any number of processes the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bishare_dsl.models.hooks import gather, shard_like

if TYPE_CHECKING:
    import torch


def optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Return an optimizer's state, each tensor whole. Where FSDP2 has sharded them, every process calls this.

    Args:
        optimizer: of the adapter's tensors, and no others.
        tensors: the adapter's, by name.
    """
    names = _names(optimizer, tensors)
    state = optimizer.state_dict()
    return {
        "groups": [
            group | {"params": [names[i] for i in group["params"]]}
            for group in state["param_groups"]
        ],
        "state": {
            names[i]: {key: gather(value) for key, value in values.items()}
            for i, values in state["state"].items()
        },
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    stored: Mapping[str, Any],
) -> None:
    """Load a state that `optimizer_state` returned into an optimizer of the same kind and the same tensors.

    Raises:
        KeyError, ValueError, TypeError, AttributeError: the state is that of another optimizer, or none.
    """
    _check_alike(stored["state"].values())
    names = _names(optimizer, tensors)
    number = {name: i for i, name in enumerate(names)}
    # torch goes by the order in the groups, which is this optimizer's.
    groups = []
    for group, here in zip(stored["groups"], optimizer.state_dict()["param_groups"], strict=True):
        if {number[name] for name in group["params"]} != set(here["params"]):
            raise ValueError("its groups have other tensors")
        check_options(group, {name: here[name] for name in here if name != "params"})
        groups.append(here | group | {"params": here["params"]})
    optimizer.load_state_dict(
        {
            "param_groups": groups,
            "state": {
                number[name]: {k: shard_like(v, tensors[name]) for k, v in values.items()}
                for name, values in stored["state"].items()
            },
        }
    )


def _names(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of an optimizer's parameters, in the order in which `state_dict` numbers them."""
    name_of = {id(tensor): name for name, tensor in tensors.items()}
    return [name_of[id(p)] for group in optimizer.param_groups for p in group["params"]]


def check_options(stored: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Check that options may have had the values that are stored, by those that they have.

    Raises:
        ValueError: they may not.
    """
    for name in stored.keys() & here.keys():
        if not _may_follow(stored[name], here[name]):
            raise ValueError(f"its `{name}` is {stored[name]!r}")


def _check_alike(states: Iterable[Mapping[str, Any]]) -> None:
    """Check that an optimizer keeps something of each tensor, if of any; what may differ (bitsandbytes)."""
    states = list(states)
    kept = [value for state in states for value in state.values()]
    odd = any(isinstance(value, (list, str)) or value == {} for value in kept)
    if odd or len({bool(state) for state in states}) > 1:
        raise ValueError("what it keeps of one tensor it does not keep of another")


def _may_follow(stored: Any, here: Any) -> bool:
    """Tell whether an option of an optimizer may have had a value, by the one that it has."""
    if isinstance(here, (tuple, list)):
        lists = isinstance(stored, list) and len(stored) == len(here)
        return lists and all(map(_may_follow, stored, here))
    if isinstance(here, (int, float)) and not isinstance(here, bool):
        return isinstance(stored, (int, float)) and not isinstance(stored, bool)
    return here is None or stored is None or isinstance(stored, type(here))
