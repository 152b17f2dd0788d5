"""The adapted tiny models of the adapters' tests, and values for a plan of one."""

import pytest
import torch

from bishare_dsl import parse_spec, plan_spec
from bishare_dsl.testing.models import tiny_model
from tests.support.adapted import adapted, ids

__all__ = ["adapted", "ids"]


@pytest.fixture(scope="session")
def model():
    return tiny_model("llama")


@pytest.fixture
def made(model):
    """The plan of some shares, and values that are nowhere zero."""

    def make(shares):
        text = f"spec s target q_proj, k_proj, down_proj {shares}"
        plan = plan_spec(parse_spec(text), model)
        random = torch.Generator().manual_seed(1)
        return plan, {t.name: torch.randn(t.shape, generator=random) for t in plan.tensors}

    return make
