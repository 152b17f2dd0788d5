"""Pairs of states of a model's adapters: banks with adapters outside of them, two of them, refusals in the middle."""

import copy
from contextlib import ExitStack

import pytest
import torch
from peft import PeftModel

from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.folder.files import read_adapter, save_library
from bishare_dsl.initial.values import draw
from bishare_dsl.peft.method import install
from bishare_dsl.testing.models import tiny_model

SPECS = {
    "lora": "spec l\ntarget q_proj, v_proj\nshare s per module rank 2\n",
    "ke": "spec k\ntarget q_proj, v_proj\nshare s per layer, kind rank 2 via KE(size = 4)\n",
    "vera": "vera",
}
NAMES = ["a", "b", "c", "d"]


def ids_of(tokens):
    return torch.arange(1, 1 + 3 * tokens).view(3, tokens) % 60 + 3


def with_four(spec):
    """A model with four adapters of one plan and four seeds, that do something."""
    model = tiny_model("llama")
    for seed, name in enumerate(NAMES):
        install(model, make_plan(spec, model), seed, name)
        random = torch.Generator().manual_seed(seed)
        plan = model.bishare[name].plan
        for tensor, values in model.bishare[name].tensors().items():
            if plan.tensor[tensor].trainable:
                values.data.copy_(torch.randn(values.shape, generator=random) * 0.3)
    return model


@pytest.fixture(scope="module", params=SPECS.values(), ids=SPECS)
def shared(request):
    return with_four(request.param)


@pytest.fixture
def model(shared):
    return copy.deepcopy(shared)


def mixed(model, names, ids):
    with torch.no_grad(), model.bishare.rows(names):
        return model(ids).logits


@pytest.mark.each_once
@pytest.mark.parametrize("tokens", [2, 24])
@pytest.mark.parametrize(
    ("names", "banks"),
    [
        (["a", "b", None], ["ab"]),
        (["a", "c", "c"], ["ab"]),
        (["c", "a", "b"], ["ab"]),
        (["a", "c", "b"], ["ab", "cd"]),
        (["d", "a", None], ["ab", "cd"]),
        (["c", "d", "c"], ["ab"]),
    ],
)
def test_a_row_has_its_own_adapter_whatever_bank_is_open(model, names, banks, tokens):
    """A row of an adapter from outside of a bank, or of another bank, had one of the bank (F5)."""
    ids = ids_of(tokens)
    want = mixed(model, names, ids)
    assert not torch.allclose(want[0], want[1])
    with ExitStack() as open_banks:
        for bank in banks:
            open_banks.enter_context(model.bishare.bank([*bank]))
        torch.testing.assert_close(mixed(model, names, ids), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed(model, names, ids), want, rtol=1e-4, atol=1e-5)


def test_gradients_reach_each_bank_and_who_trains_beside_it(model):
    handle, names, ids = model.bishare, ["a", "c", "d"], ids_of(8)
    model.train()
    for name in names:
        handle[name].set_trainable(True)
    with handle.rows(names):
        model(ids, labels=ids).loss.backward()
    want = {
        (name, t): p.grad.clone()
        for name in names
        for t, p in handle[name].tensors().items()
        if p.grad is not None
    }
    for _, parameter in model.named_parameters():
        parameter.grad = None
    with handle.bank(["a", "b"]) as first, handle.bank(["c"]) as second:
        handle["d"].set_trainable(True)
        with handle.rows(names):
            model(ids, labels=ids).loss.backward()
        for bank, row, name in ((first, 0, "a"), (second, 0, "c")):
            kind = bank.kind
            sizes = [torch.Size(shape).numel() for shape in kind.own.values()]
            parts = bank.own.grad[row][: sum(sizes)].split(sizes)
            for tensor, part in zip(kind.own, parts, strict=True):
                expected = want[name, tensor].flatten()
                torch.testing.assert_close(part, expected, rtol=1e-3, atol=1e-6)
        assert not first.own.grad[1].any()
        for tensor, parameter in handle["d"].tensors().items():
            if ("d", tensor) in want:
                torch.testing.assert_close(parameter.grad, want["d", tensor], rtol=1e-3, atol=1e-6)


def test_a_refusal_in_the_middle_of_other_states(model):
    handle, ids = model.bishare, ids_of(4)
    handle.set_adapter("a")
    with torch.no_grad():
        want, base = model(ids).logits, None
        with handle.disable_adapter():
            base = model(ids).logits
            for refused in (handle.merge, handle.unload, lambda: handle.set_adapter("x")):
                with pytest.raises(AdapterError):
                    refused()
            handle.set_adapter("b")
            handle.set_adapter("a")
            assert torch.equal(model(ids).logits, base)
        assert torch.equal(model(ids).logits, want)
        handle.merge()
        for refused in (lambda: handle.set_adapter("b"), lambda: handle.delete_adapter("a")):
            with pytest.raises(AdapterError, match="BS643"):
                refused()
        handle.delete_adapter("d")
        with handle.disable_adapter():
            assert torch.equal(model(ids).logits, base)
        handle.unmerge()
        assert torch.equal(model(ids).logits, want)
        with handle.rows(["a", "b", None]):
            for refused in (
                handle.merge,
                lambda: handle.set_adapter("b"),
                lambda: handle.set_scale("a", 2),
            ):
                with pytest.raises(AdapterError, match="BS674"):
                    refused()
        assert torch.equal(model(ids).logits, want)
    assert (handle.active, handle.merged, handle.disabled) == (("a",), False, False)


@pytest.mark.parametrize("seed", [5, 2**40])
def test_a_library_of_another_seed(seed, tmp_path):
    model = tiny_model("llama")
    plan = compile_spec("vera", model, seed=seed).bishare.plan
    adapters = {name: draw(plan, seed) for name in ("x", "y")}
    for number, tensors in enumerate(adapters.values()):
        for name, tensor in tensors.items():
            if plan.tensor[name].trainable:
                tensor.fill_(number + 1.0)
    save_library(tmp_path / "lib", plan, adapters, model.bishare.spec_text, seed=seed)
    for name, tensors in adapters.items():
        found = read_adapter(f"{tmp_path / 'lib'}#{name}").tensors()
        assert all(torch.equal(found[n], tensor) for n, tensor in tensors.items())


@pytest.mark.parametrize("spec", ["lora_xs", "pissa"])
@pytest.mark.parametrize("low", [False, True])
def test_tensors_that_the_base_gives_are_filled_in_on_the_meta_device(spec, low, tmp_path):
    model, ids = compile_spec(spec, tiny_model("llama"), seed=3), ids_of(5)
    with torch.no_grad():
        for parameter in model.bishare.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        want = model.eval()(ids).logits
    model.bishare.save_pretrained(tmp_path, frozen="base")
    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path, low_cpu_mem_usage=low)
    assert not any(p.is_meta for p in loaded.parameters())
    again = load_adapter(tmp_path, tiny_model("llama"))
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(ids).logits, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again.eval()(ids).logits, want, rtol=1e-4, atol=1e-5)
