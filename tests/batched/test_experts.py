"""Rows of a mixed batch whose adapters add to experts: each is as if its adapter were active and the row alone."""

import copy

import pytest
import torch

from bishare_dsl.diagnostics import AdapterError
from tests.batched.test_batches import IDS, close, filled, logits_alone
from tests.batched.test_training import close as close_gradients
from tests.batched.test_training import gradients, losses, of_each_alone, trains
from tests.models.test_weights import mixture

SPECS = {
    "all": """
        spec s
        target q_proj, gate_proj, up_proj, down_proj
        share own per module rank 2 where expert != none
        share alike per kind rank 3 via SS(slice = trailing) where expert != none
        share seen per module rank 1 where expert == none
        """,
    "some": """
        spec t
        target down_proj
        share few per layer rank 2 where expert in 1..2
        """,
}
ADAPTERS = {"a": SPECS["all"], "a2": SPECS["all"], "b": SPECS["some"]}


@pytest.fixture(scope="module", params=["mixtral", "gpt_oss", "qwen3_moe"])
def model(request):
    return filled(mixture(request.param), ADAPTERS)


@pytest.mark.parametrize(
    "names", [["a", "a2", None, "b"], ["b", "a", "a2", "a"], ["a2"] * 4, ["a", "a", "a2", "a2"]]
)
@torch.no_grad()
def test_each_row_has_its_own_adapter(model, names):
    close(model(IDS, adapter_names=names).logits, logits_alone(model, names))


def test_each_adapter_gets_the_gradients_of_its_rows(model):
    names = ["a", "b", "a2", "a"]
    learner = trains(copy.deepcopy(model))
    losses(learner(IDS, adapter_names=names).logits).sum().backward()
    close_gradients(gradients(learner), of_each_alone(learner, names), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("batches.ExpertsAssembly", str, "BS679"),  # Such a module is given tokens of all rows.
        ("experts.INDICES", (), r"BS682.*takes no numbers of experts"),
    ],
)
def test_a_module_that_is_not_told_whose_its_tokens_are_is_refused(
    model, monkeypatch, name, value, says
):
    monkeypatch.setattr(f"bishare_dsl.batched.{name}", value)
    with pytest.raises(AdapterError, match=says):
        model(IDS[:2], adapter_names=["a", "b"])
    if name == "experts.INDICES":
        model(IDS[:2], adapter_names=["a", "a"])
