"""Compositions and references in pairs with what else an adapter does: types, checkpointing, batches, libraries."""

import copy

import pytest
import torch

from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.cli.main import main
from bishare_dsl.folder.files import save_library
from bishare_dsl.language import parse_spec
from bishare_dsl.testing.models import tiny_model
from tests.batched.test_batches import IDS, close, filled, logits_alone
from tests.batched.test_training import close as equal
from tests.batched.test_training import gradients as mixed_gradients
from tests.batched.test_training import losses, of_each_alone, trains
from tests.support import checks
from tests.support.forms import FORMS, spec_of

SIZES = {"num_hidden_layers": 3}
each_form = pytest.mark.parametrize("name", FORMS)


@pytest.fixture
def base():
    return tiny_model("llama", **SIZES)


@each_form
def test_every_invariant(name, base):
    """Fresh, counted, equal to the dense reference in float64, saved once, merged, exported, seeded."""
    checks.check_spec(parse_spec(spec_of(name)), base)


@each_form
def test_bfloat16(name, base):
    spec, base = parse_spec(spec_of(name)), base.to(torch.bfloat16)
    checks.check_against_reference(spec, base, dtype=torch.bfloat16)
    checks.check_fresh(spec, base)
    checks.check_saving(spec, base)
    checks.check_seed(spec, base)


def gradients(model):
    model.zero_grad()
    model(IDS, labels=IDS, use_cache=False).loss.backward()
    tensors = model.bishare.tensors()
    return {name: t.grad.clone() for name, t in tensors.items() if t.requires_grad}


@each_form
def test_checkpointing_computes_the_same_gradients(name, base):
    model = compile_spec(spec_of(name), base).train()
    checks.randomize(model)
    expected = gradients(model)
    assert all(gradient.any() for gradient in expected.values())
    model.enable_input_require_grads()
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for tensor, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, expected[tensor], rtol=1e-4, atol=1e-6)


@each_form
@torch.no_grad()
def test_a_row_of_a_mixed_batch_is_as_if_alone(name, base):
    """Two adapters of the form, one of another form, and the base."""
    others = [*FORMS]
    other = others[others.index(name) - 1]
    model = filled(base, {"a": spec_of(name), "b": spec_of(name), "c": spec_of(other)})
    for names in (["a", "b", None, "a"], ["b", "c", None, "a"]):
        close(model(IDS, adapter_names=names).logits, logits_alone(model, names))


@each_form
def test_a_row_of_a_mixed_batch_has_the_gradients_as_if_alone(name, base):
    model = trains(filled(base, {"a": spec_of(name), "b": spec_of(name)}))
    names = ["a", "b", None, "a"]
    losses(model(IDS, adapter_names=names).logits).sum().backward()
    equal(mixed_gradients(model), of_each_alone(model, names))


@each_form
@torch.no_grad()
def test_a_library_keeps_each_tensor_once(name, base, tmp_path):
    model = compile_spec(spec_of(name), copy.deepcopy(base)).eval()
    plan = model.bishare.plan
    members, logits = {}, {}
    for seed, member in enumerate(("a", "b")):
        values = checks.randomize(model, seed, frozen=False)
        if members:
            for shared in plan.common:
                values[shared].copy_(members["a"][shared])
        members[member] = {tensor: value.clone() for tensor, value in values.items()}
        logits[member] = model(IDS).logits
    save_library(tmp_path / "lib", plan, members, model.bishare.spec_text, seed=0)
    for member, expected in logits.items():
        loaded = load_adapter(f"{tmp_path / 'lib'}#{member}", copy.deepcopy(base)).eval()
        torch.testing.assert_close(loaded(IDS).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in FORMS if "magnitude" not in name])
def test_convert_computes_the_same(name, base, tmp_path, capsys):
    """The command, from a folder: PEFT's folder is read by PEFT."""
    base.save_pretrained(tmp_path / "base")
    model = compile_spec(spec_of(name), copy.deepcopy(base)).eval()
    checks.randomize(model, frozen=False)
    model.bishare.save_pretrained(tmp_path / "adapter")
    out = tmp_path / "lora"
    assert (
        main(
            [
                "convert",
                str(tmp_path / "adapter"),
                "--for",
                "peft",
                "--out",
                str(out),
                "--model",
                str(tmp_path / "base"),
            ]
        )
        == 0
    )
    exported = checks.loaded_by_peft(copy.deepcopy(base), out).eval()
    with torch.no_grad():
        close(exported(IDS).logits, model(IDS).logits)
