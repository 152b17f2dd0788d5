"""Adapted tiny models whose adapters do something."""

import copy
import io
import pickle

import pytest
import torch

from bishare_dsl import compile_spec, parse_spec
from tests.support.families import tiny_model

# A tier of each kind, each through another transform, with scales that are not 1.
SPEC = """
spec mixed
target q_proj, k_proj, v_proj, up_proj, down_proj
share local per module rank 2 scale 2
share intra per layer rank 3 scale 0.5 / (1 + layer) via KE(size = 4)
share inter per model rank 4 via SS(slice = trailing)
"""
GPT2 = """
spec gpt2
target c_attn, c_fc
share local per module rank 2 scale 2
share inter per model rank 3 via GT(size = 8, gate_rank = 2)
"""


def trained(text, seed=3, **sizes):
    """Adapt a tiny llama, and move what trains away from its start."""
    model = compile_spec(parse_spec(text), tiny_model("llama", **sizes), seed=seed)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            if tensor.requires_grad:
                tensor.add_(0.1)
    return model


def moved(model):
    """An adapted model whose every tensor is away from its start."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=random))
    return model


IDS = torch.arange(9).view(1, 9)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture
def spec():
    return parse_spec(SPEC)


@pytest.fixture
def ids():
    return torch.randint(64, (2, 10), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def adapted():
    """Compile a spec into a tiny model and move every tensor away from its start."""

    def make(family="llama", text=SPEC, dtype=torch.float32):
        return moved(compile_spec(parse_spec(text), tiny_model(family).to(dtype), seed=3))

    return make


@pytest.fixture
def base():
    return tiny_model


def by_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": by_torch_save,
}


@pytest.fixture(params=COPIES.values(), ids=COPIES.keys())
def copied(request):
    """A way to make a copy of a model."""
    return request.param
