"""Frozen tensors: stored as the seed that draws them, unless they are not what it draws."""

import gc
import warnings
import weakref

import pytest
import torch

from bishare_dsl import load_adapter, parse_spec, plan_spec
from bishare_dsl.diagnostics import BishareWarning
from bishare_dsl.folder.files import read_adapter
from bishare_dsl.folder.stored import find_drawn
from bishare_dsl.initial import values as initial
from bishare_dsl.initial.values import draw
from bishare_dsl.testing.models import tiny_model
from tests.folder.test_files import config_of, refused, reseal
from tests.support.adapted import logits, trained
from tests.support.stored import load_stored

VERA = """
spec vera
target q_proj, v_proj
share s per model rank 4 via SS freeze A, B init B kaiming_uniform gain rank init 0.1, out init 0
"""
NOLA = """
spec nola
target q_proj, v_proj
share s per model rank 2 via Basis(count = 500) freeze A, B init B kaiming_uniform
"""


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", BishareWarning)
        yield


@pytest.mark.parametrize("text", [VERA, NOLA])
def test_the_seed_is_stored_and_draws_the_same_again(text, tmp_path):
    model = trained(text)
    model.bishare.save_pretrained(tmp_path)
    frozen = {"s.A", "s.B"}
    assert load_stored(tmp_path).keys() == model.bishare.plan.tensor.keys() - frozen
    assert read_adapter(tmp_path).config.ways("seed").keys() == frozen
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert size < 4 * model.bishare.plan.trainable + 6000  # The config stands in it, too.
    loaded = load_adapter(tmp_path, tiny_model("llama"))
    found = loaded.bishare.tensors()
    for name, tensor in model.bishare.tensors().items():
        assert torch.equal(found[name], tensor)
        assert found[name].requires_grad is tensor.requires_grad is (name not in frozen)
    assert torch.equal(logits(loaded), logits(model))


def test_tensors_of_another_value_are_stored_and_that_is_told(tmp_path):
    model = trained(VERA)
    with torch.no_grad():
        model.bishare.tensors()["s.A"][1, 2] += 1e-7
    with pytest.warns(
        BishareWarning,
        match=r"BS635.*stored, because seed 3 does not generate their values: `s\.A`$",
    ) as caught:
        model.bishare.save_pretrained(tmp_path)
    assert caught[0].filename == __file__
    assert {"s.A", "s.B"} & load_stored(tmp_path).keys() == {"s.A"}
    assert torch.equal(logits(load_adapter(tmp_path, tiny_model("llama"))), logits(model))


def test_one_tensor_is_drawn_at_a_time(tmp_path, monkeypatch):
    """Bases may be larger than all that is trained: no second set of them is held."""
    plan = plan_spec(parse_spec(VERA), tiny_model("llama"))
    tensors, right = draw(plan, 0), initial.draw_tensor
    alive = []

    def watched(tensor, seed):
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 1
        alive.append(weakref.ref(value := right(tensor, seed)))
        return value

    monkeypatch.setattr("bishare_dsl.folder.stored.draw_tensor", watched)
    assert find_drawn(plan, tensors, 0).keys() == {"s.A", "s.B"}
    assert len(alive) == 2


# What is wrong with a folder ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    trained(VERA).bishare.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_machine_that_draws_other_numbers(folder, monkeypatch):
    right = initial.draw_tensor
    monkeypatch.setattr(
        "bishare_dsl.folder.stored.draw_tensor", lambda tensor, seed: right(tensor, seed + 1)
    )
    refused(folder, "BS634", "`s.A`", "seed 3")


def edit_config(folder, edit):
    config = config_of(folder)
    edit(config["bishare"])
    reseal(folder, **config["bishare"])


def test_a_tensor_that_is_neither_stored_nor_drawn(folder):
    edit_config(folder, lambda record: record["entries"].pop("s.A"))
    refused(folder, "BS609", "s.A")


def test_what_must_not_be_drawn(folder):
    name = "s.layers.0.self_attn.q_proj.gain_out"
    edit_config(folder, lambda record: record["entries"].update({name: record["entries"]["s.A"]}))
    refused(folder, "BS604", f"`{name}` must be in the file")
