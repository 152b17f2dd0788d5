"""What a target means and does not get is told: its name, why, and how many parameters."""

import warnings

import pytest

from bishare_dsl import plan_spec
from bishare_dsl.diagnostics import BishareWarning
from tests.support.families import tiny_model


def stacked():
    """A mixture whose experts do not say how they keep their weights."""
    model = tiny_model("mixtral")
    for layer in model.model.layers:
        del layer.mlp.experts.is_transposed
    return model


def warnings_of(model, target):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan_spec(f"spec s\ntarget {target}\nshare x per module rank 1", model)
    messages = [str(w.message) for w in caught if issubclass(w.category, BishareWarning)]
    found = (text.partition("\n")[0] for text in messages if "BS313" in text)
    return [text.removeprefix("warning[BS313]: `target` leaves out ") for text in found]


@pytest.mark.parametrize("target", ['kind "*"', 'path "*_proj"', "not q_proj"])
def test_experts_under_a_condition(target):
    why = "it is several matrices in one parameter"
    assert warnings_of(stacked(), target) == [
        f"`model.layers.*.mlp.experts.gate_up_proj` (24,576 parameters): {why}",
        f"`model.layers.*.mlp.experts.down_proj` (12,288 parameters): {why}",
    ]


def test_what_was_not_meant_is_not_told():
    model = stacked()
    assert warnings_of(model, "q_proj") == []
    assert warnings_of(model, "parent self_attn") == []
    assert warnings_of(tiny_model("llama"), 'kind "*"') == []
    assert warnings_of(tiny_model("mixtral"), 'kind "*"') == []  # Here experts are sites.
