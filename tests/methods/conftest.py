"""Methods of the literature as shipped specs, on a tiny model with unequal widths and grouped queries."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from bishare_dsl import compile_spec
from bishare_dsl.language import read_file
from bishare_dsl.resources import shipped_specs
from bishare_dsl.testing.models import tiny_model
from tests.support.checks import randomize

# Three layers: enough for pools of several layers that are not all layers.
LAYERS = 3


def spec(name, **params):
    return read_file(shipped_specs()[name])[0].with_params(params)


@dataclass
class Adapted:
    """An adapted float64 model whose tensors are all random."""

    base: Any
    model: Any

    @property
    def plan(self):
        return self.model.bishare.plan

    def tensors(self, site):
        """The tensors of a site with one term, by role."""
        (term,) = self.plan.terms_of[site]
        return {role: self.model.bishare.tensors()[name] for role, name in term.tensors.items()}


@pytest.fixture(scope="session")
def llama():
    return tiny_model("llama", num_hidden_layers=LAYERS).double()


@pytest.fixture
def adapted(llama):
    def make(name, **params):
        model = compile_spec(spec(name, **params), copy.deepcopy(llama)).double()
        randomize(model)
        return Adapted(llama, model)

    return make


def run(model):
    """Logits; their gradients are left in the parameters."""
    ids = torch.arange(12).view(2, 6) * 5 % 64
    logits = model(ids).logits
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).double()
    model.zero_grad()
    (logits * weights).sum().backward()
    return logits.detach()


def close(found, expected):
    """Equal up to the rounding of float64."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def near(found, expected):
    """Equal up to the rounding of float32, in which `Adapted.delta` computes."""
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-6)
