"""Adapted tiny models whose adapters do something."""

import copy
import io
import pickle
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from bishare_dsl import compile_spec, parse_spec
from bishare_dsl.spec import Spec
from tests.support.families import tiny_model

# `make test-quantised` brings torchao and GPTQ. Elsewhere, half of these tests could not run.
collect_ignore = [] if find_spec("torchao") else ["test_quantised.py"]

# A tier of each kind, each through another transform, with scales that are not 1.
SPEC = """
spec mixed
target q_proj, k_proj, v_proj, up_proj, down_proj
share local per module rank 2 scale 2
share intra per layer rank 3 scale 0.5 via KE(size = 4)
share inter per model rank 4 via SS(slice = trailing)
"""
GPT2 = """
spec gpt2
target c_attn, c_fc
share local per module rank 2 scale 2
share inter per model rank 3 via GT(size = 8, gate_rank = 2)
"""


def trained(text: str, seed: int = 3, **sizes: Any) -> Any:
    """Adapt a tiny llama, and move what trains away from its start."""
    model = compile_spec(parse_spec(text), tiny_model("llama", **sizes), seed=seed)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            if tensor.requires_grad:
                tensor.add_(0.1)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(9).view(1, 9)).logits
    return found


@pytest.fixture
def spec() -> Spec:
    return parse_spec(SPEC)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(64, (2, 10), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def adapted() -> Callable[..., Any]:
    """Compile a spec into a tiny model and move every tensor away from its start."""

    def make(family: str = "llama", text: str = SPEC, dtype: torch.dtype = torch.float32) -> Any:
        model = compile_spec(parse_spec(text), tiny_model(family).to(dtype), seed=3)
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for tensor in model.bishare.tensors().values():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=random))
        return model

    return make


@pytest.fixture
def base() -> Callable[..., Any]:
    return tiny_model


def by_torch_save(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": by_torch_save,
}


@pytest.fixture(params=COPIES.values(), ids=COPIES.keys())
def copied(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """A way to make a copy of a model."""
    way: Callable[[Any], Any] = request.param
    return way
