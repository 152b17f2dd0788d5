"""LoRAs of a tiny model that do something."""

import pytest
import torch

from bishare_dsl.compiler import make_plan
from bishare_dsl.folder.files import read_adapter, save_adapter
from bishare_dsl.initial.values import draw
from bishare_dsl.models import architecture_of
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer


@pytest.fixture(scope="session")
def base():
    return architecture_of(tiny_model("llama"))


def write_trained(base, folder, spec, seed, **params):
    """Save an adapter whose tensors are as if it had been trained, and read it."""
    made = make_plan(spec, base, params)
    tensors = draw(made.plan, 0)  # What is frozen is what `fit` draws.
    random = torch.Generator().manual_seed(seed)
    for tensor in made.plan.tensors:
        if tensor.trainable:
            tensors[tensor.name] = torch.randn(tensor.shape, generator=random) / 3
    save_adapter(folder, made.plan, tensors, made.text(), seed=0)
    return read_adapter(folder)


@pytest.fixture
def trained(base, tmp_path):
    def make(spec, name="given", seed=0, **params):
        return write_trained(base, tmp_path / name, spec, seed, **params)

    return make


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The tiny model with a tokenizer, on the disk."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
