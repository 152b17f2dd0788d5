"""Updates that are not matrices: they run, train, save and load; they cannot be merged or exported."""

import copy
import pickle

import pytest
import torch

from bishare_dsl import compile_spec, load_adapter, parse_spec
from bishare_dsl.convert.effective import delta, effective_factors
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.testing.models import tiny_model
from tests.support.adapted import logits
from tests.support.checks import randomize

TEXT = """
spec experts
target q_proj, down_proj
share mixed where q_proj per module rank 2 via Experts(count = 2)
share more where q_proj per module rank 2 via Experts(count = 3)
share plain per module rank 2
"""


@pytest.fixture
def model():
    model = compile_spec(parse_spec(TEXT), tiny_model("llama"))
    randomize(model)
    return model


def refused(action, *words):
    with pytest.raises(AdapterError) as caught:
        action()
    assert {problem.code for problem in caught.value.problems} == {"BS633"}
    for word in ("`mixed`", "`more`", "(Experts) is not linear", *words):
        assert word in str(caught.value)


def test_it_is_never_a_matrix_and_where_it_is_linear_there_are_factors(model, tmp_path):
    want, handle = logits(model), model.bishare
    refused(handle.merge, "merge the adapter")
    refused(handle.merge_and_unload, "merge the adapter")
    refused(lambda: handle.merge(dequantize=True, keep_base=False), "merge the adapter")
    refused(lambda: handle.export(tmp_path / "peft"), "export the adapter as a plain LoRA")
    site = next(site for site in handle.plan.sites if site.kind == "q_proj")
    refused(lambda: effective_factors(handle.plan, handle.tensors(), site), site.path)
    refused(lambda: delta(handle.plan, handle.tensors(), site))
    assert not list(tmp_path.iterdir())
    assert not handle.merged
    assert torch.equal(logits(model), want)
    site = next(site for site in handle.plan.sites if site.kind == "down_proj")
    down, up = effective_factors(handle.plan, handle.tensors(), site)
    assert (len(down), len(up)) == (2, 2)


def test_all_else_works(model, tmp_path):
    want, base = logits(model), logits(tiny_model("llama"))
    assert "4 modules, active" in repr(model.bishare)
    with model.bishare.disable_adapter():
        assert torch.equal(logits(model), base)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(copied), want)
    model.bishare.save_pretrained(tmp_path)
    loaded = load_adapter(tmp_path, tiny_model("llama"))
    assert torch.equal(logits(loaded), want)
    ids = torch.arange(9).view(1, 9)
    loaded.train()
    loaded(input_ids=ids, labels=ids).loss.backward()
    assert all(tensor.grad.any() for tensor in loaded.bishare.tensors().values())
    assert torch.equal(logits(loaded.bishare.unload()), base)
