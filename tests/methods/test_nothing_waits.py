"""No host decides on what a device computes: an adapter asks for no value of a tensor, whatever it does."""

import copy
from collections import Counter

import pytest
import torch
from peft import get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from bishare_dsl import compile_spec
from bishare_dsl.peft import BishareConfig
from bishare_dsl.transforms.factor import DECODE_TOKENS
from tests.methods.conftest import LAYERS, close, spec
from tests.methods.test_every_method import ONE_OF_EACH, TINY
from tests.support.checks import randomize
from tests.support.families import tiny_model

WAITING = {
    "_local_scalar_dense", "equal", "nonzero", "is_nonzero", "item", "masked_select", "unique_dim",
    "_unique2", "allclose", "is_same_size",
}  # fmt: skip
"""What waits for a device, or gives a shape that depends on values."""

IDS = torch.arange(2 * (DECODE_TOKENS + 4)).view(2, -1) * 5 % 64
EXPERTS = "spec s\ntarget parent experts\nshare x per expert // 2, kind rank 2\nshare y per model rank 2 via SS"


class Waits(TorchDispatchMode):
    """Counts the calls that wait."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITING or (name == "_to_copy" and args[0].device != torch.device("cpu")):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def train(model):
    model.train()
    model(inputs_embeds=model.get_input_embeddings()(IDS), use_cache=False).logits.sum().backward()


@torch.no_grad()
def evaluate(model):
    model.eval()(IDS, use_cache=False)


@torch.no_grad()
def decode(model):
    model.eval()
    cache = model(IDS[:1, :3], use_cache=True).past_key_values
    model(IDS[:1, 3:4], past_key_values=cache)


def waits(act, model):
    with Waits() as mode:
        act(model)
    return mode.found


@pytest.fixture(scope="module")
def base():
    return tiny_model("llama", num_hidden_layers=LAYERS).double()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_of_a_method(name, base):
    model = compile_spec(spec(name, **TINY[name]), copy.deepcopy(base)).double()
    randomize(model)
    for act in (train, evaluate, decode):
        assert waits(act, model) <= waits(act, base), act.__name__
    # Few tokens go another way than many, and than those with gradients.
    with torch.no_grad():
        few, many = model(IDS[:1, :3]).logits, model(IDS).logits
    close(few, many[:1, :3])


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_of_experts(implementation):
    base = tiny_model("mixtral")
    base.set_experts_implementation(implementation)
    model = compile_spec(EXPERTS, copy.deepcopy(base))
    for act in (train, evaluate, decode):
        assert waits(act, model) <= waits(act, base), act.__name__


def test_of_a_mixed_batch(base):
    model = get_peft_model(
        copy.deepcopy(base), BishareConfig(spec="bishare_ke", params={"size": 4}), "one"
    )
    model.add_adapter("two", BishareConfig(spec="bishare_ss"))
    plain = waits(evaluate, base)
    with torch.no_grad(), Waits() as mode:
        model.eval()(IDS, use_cache=False, adapter_names=["one", "two"])
    assert mode.found <= plain
