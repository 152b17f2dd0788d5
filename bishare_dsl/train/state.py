"""What a checkpoint holds beside the adapter, as tensors and JSON: reading it runs no code.

A state is a tree of dicts with words for keys, lists, numbers, words and tensors.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.models.hooks import gather, shard_like
from bishare_dsl.train.errors import TrainError

_TENSOR = "$tensor"


def to_bytes(tree: Any) -> tuple[bytes, bytes]:
    """Write a state as JSON, and its tensors as safetensors.

    Raises:
        TrainError: something in it is neither (BS748).
    """
    tensors: dict[str, torch.Tensor] = {}

    def encoded(value: Any, path: str) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, torch.Tensor):
            tensors[path] = value.detach().cpu().clone().contiguous()
            return {_TENSOR: path}
        if isinstance(value, (list, tuple)):
            return [encoded(item, f"{path}/{i}") for i, item in enumerate(value)]
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: encoded(item, f"{path}/{key}") for key, item in value.items()}
        raise TrainError(codes.NOT_STORABLE(what=f"`{path[1:]}`", kind=type(value).__name__))

    text = json.dumps(encoded(tree, ""))
    return text.encode(), save(tensors)


def from_bytes(text: bytes, tensors: bytes) -> Any:
    """Read the state again; what were tuples are lists.

    Raises:
        ValueError, KeyError, SafetensorError: it is not a state.
    """
    values = load(tensors)

    def decoded(value: Any) -> Any:
        if isinstance(value, list):
            return [decoded(item) for item in value]
        if isinstance(value, dict):
            if value.keys() == {_TENSOR}:
                return values[value[_TENSOR]]
            return {key: decoded(item) for key, item in value.items()}
        return value

    return decoded(json.loads(text))


def generators(device: torch.device) -> dict[str, Any]:
    """Return the state of every random generator that a run draws from."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_generators(state: Mapping[str, Any], device: torch.device) -> None:
    """Let all generators go on from a state that `generators` gave."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type])


@contextmanager
def keep_generators(device: torch.device) -> Iterator[None]:
    """Leave all generators as they were before a block, which draws what it likes."""
    state = generators(device)
    try:
        yield
    finally:
        set_generators(state, device)


# The optimizer's, by the names of the adapter's tensors: for any number of processes the same ----------


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
