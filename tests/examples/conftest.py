"""The examples as modules, and what they are run on: a tiny checkpoint and an adapter that is not fresh."""

from pathlib import Path

import pytest
import torch

from bishare_dsl import compile_spec
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_model("llama", max_position_embeddings=128).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of an adapter that is far from its start."""
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    model = compile_spec("lora", tiny_model("llama"))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=random))
    model.bishare.save_pretrained(folder)
    return folder
