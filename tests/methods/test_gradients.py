"""After a step each tensor that trains has a gradient: shipped specs, families, kinds of checkpointing."""

import pytest
import torch

from bishare_dsl import compile_spec
from tests.methods.conftest import LAYERS, spec
from tests.methods.test_every_method import ONE_OF_EACH, TINY
from tests.support.checks import randomize
from tests.support.families import tiny_model
from tests.support.parts import quick

FAMILIES = ("llama", "qwen3", "gemma2", "mistral", "qwen2")
IDS = torch.arange(3, 19).view(2, 8)


def gradients(model):
    tensors = {n: t for n, t in model.bishare.tensors().items() if t.requires_grad}
    model.zero_grad()
    torch.manual_seed(0)  # Of dropout.
    model(IDS, labels=IDS, use_cache=False).loss.backward()
    assert not [name for name, tensor in tensors.items() if tensor.grad is None]
    return {name: tensor.grad.clone() for name, tensor in tensors.items()}


# Each spec on the first family, and on one of the others in turn.
CASES = [
    (name, family) for i, name in enumerate(TINY) for family in (FAMILIES[0], FAMILIES[1 + i % 4])
]
ONCE = [(name, family) for name, family in CASES if name in ONE_OF_EACH and family != FAMILIES[0]]


@pytest.mark.parametrize(("name", "family"), quick(CASES, ONCE))
def test_every_tensor_has_one_however_layers_are_recomputed(name, family):
    model = compile_spec(
        spec(name, **TINY[name]), tiny_model(family, num_hidden_layers=LAYERS)
    ).train()
    randomize(model, frozen=False)
    expected = gradients(model)
    assert not [name for name, gradient in expected.items() if not gradient.any()]
    model.enable_input_require_grads()
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for tensor, gradient in gradients(model).items():
            # Reentrant checkpointing adds the gradients of a shared tensor in another order.
            wanted = expected[tensor]
            assert (gradient - wanted).norm() <= 1e-4 * wanted.norm(), tensor
