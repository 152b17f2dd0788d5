"""What a checkpoint holds beside the adapter, as tensors and JSON: reading it runs no code.

A state is a tree of dicts with words for keys, lists, numbers, words and tensors.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from bishare_dsl.diagnostics.codes import train as codes
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
