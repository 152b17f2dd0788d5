"""Code of `torch.compile` stays valid as adapters are switched and written."""

import pytest
import torch
from peft import get_peft_model

from bishare_dsl.peft import BishareConfig
from bishare_dsl.testing.models import tiny_model
from tests.support.checks import randomize

IDS = torch.arange(3, 11)[None]
SPEC = """spec s
target q_proj, v_proj, up_proj, down_proj
share a per layer rank 2 via KE(size = 4)
share b per module rank 2
"""
OTHER = "spec t\ntarget q_proj, down_proj\nshare a per model rank 2 via SS\n"


@pytest.fixture
def model():
    model = get_peft_model(tiny_model(num_hidden_layers=1), BishareConfig(spec=SPEC))
    model.add_adapter("same", BishareConfig(spec=SPEC, seed=1))
    model.add_adapter("other", BishareConfig(spec=OTHER))
    for name in ("same", "other", "default"):
        model.set_adapter(name)
        randomize(model)
    return model.eval()


@torch.no_grad()
def test_ten_switches_and_ten_writes_compile_nothing_anew(model):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    inner = model.get_base_model()
    compiled = torch.compile(inner, backend=backend)
    names = ("default", "same", "other")
    for name in names:  # Each adapter's code compiles once.
        model.set_adapter(name)
        compiled(IDS, use_cache=False)
    first = len(graphs)
    for turn in range(10):
        name = names[turn % 3]
        model.set_adapter(name)
        for tensor in inner.bishare.tensors().values():
            tensor.mul_(0.9)
        expected = inner(IDS, use_cache=False).logits
        torch.testing.assert_close(compiled(IDS, use_cache=False).logits, expected)
    assert len(graphs) == first
    model.set_adapter("same")
    assert not torch.equal(compiled(IDS, use_cache=False).logits, expected)
