"""Tiny models, and adapters that do something."""

import copy

import pytest
import torch
from peft import get_peft_model

from bishare_dsl.peft import BishareConfig
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from tests.support.checks import randomize

SPEC = """spec small
target q_proj, v_proj, down_proj
dropout 0.2
share a per layer rank 4 via SS
share b per module rank 2
"""


def logits(model, ids, **given):
    with torch.no_grad():
        return model(ids, **given).logits


def with_two(base, spec):
    """A `PeftModel` with adapters a, which runs, and b, that do something."""
    model = get_peft_model(base, BishareConfig(spec=spec, task_type="CAUSAL_LM"), "a")
    model.add_adapter("b", BishareConfig(spec=spec, seed=1))
    for seed, adapter in enumerate("ab"):
        random = torch.Generator().manual_seed(seed)
        for name, tensor in base.bishare[adapter].tensors().items():
            if base.bishare.plan.tensor[name].trainable:
                tensor.data.add_(torch.randn(tensor.shape, generator=random), alpha=0.2)
    return model.eval()


@pytest.fixture
def base():
    return tiny_model("llama").eval()


@pytest.fixture
def ids():
    return torch.randint(3, 64, (3, 9), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def adapted(base):
    """Make a `PeftModel` of the tiny model with an adapter that does something."""

    def make(spec=SPEC, seed=0, **settings):
        config = BishareConfig(spec=spec, seed=seed, task_type="CAUSAL_LM", **settings)
        model = get_peft_model(copy.deepcopy(base), config)
        randomize(model, seed + 1)
        return model.eval()

    return make


def write_checkpoint(folder):
    """Write the folder of a tiny model with its tokenizer."""
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder)
    return folder
