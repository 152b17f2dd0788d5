"""Factors are kept while nothing changes, and never a moment longer."""

import ctypes

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from bishare_dsl.rewrite import OwnedTensors, effective_factors, regions

IDS = torch.tensor([[5, 9, 13, 21, 34, 3, 8]])


def replace(module, name, parameter):
    delattr(module, name)
    module.register_parameter(name, parameter)


def step(model, **options):
    loss = model(IDS, labels=IDS).loss
    with torch.no_grad():
        model(IDS)  # between forward and backward: it must not keep what the step changes
    loss.backward()
    with torch.no_grad():
        model(IDS)  # nor between the gradients and the step
    trainable = [p for p in model.parameters() if p.requires_grad]
    torch.optim.AdamW(trainable, lr=0.1, **options).step()
    for parameter in trainable:
        parameter.grad = None


def tensors_of(model):
    return [p for name, p in model.named_parameters() if "bishare" in name]


def collective(model):
    with torch.no_grad():
        for tensor in tensors_of(model):
            # As `broadcast(p.detach())` does: written by who counts nothing.
            ctypes.memset(tensor.detach().data_ptr(), 0, 4)


def through_numpy(model):
    for tensor in tensors_of(model):
        tensor.detach().numpy()[0, 0] = 3.0


def through_storage(model):
    for tensor in tensors_of(model):
        tensor.untyped_storage().copy_((tensor.detach() + 0.1).untyped_storage())


def through_bfloat16(model):
    # Rounds every value, and may well put it back at the address where it was.
    model.to(torch.bfloat16)
    model.to(torch.float32)


def load(model, assign):
    state = {k: v + 0.1 if "bishare" in k else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)


def in_place(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bishare" in name:
                parameter.add_(0.1)


def new_parameters(model):
    for store in [m for m in model.modules() if isinstance(m, OwnedTensors)]:
        for name, parameter in list(store.named_parameters()):
            replace(store, name, nn.Parameter(parameter.detach() + 0.1))


def new_data(model):
    for name, parameter in model.named_parameters():
        if "bishare" in name:
            parameter.data = parameter.data + 0.1


def through_data(model):
    for tensor in tensors_of(model):
        tensor.data.add_(0.1)


CHANGES = {
    "in place": in_place,
    "new parameters": new_parameters,
    "new data": new_data,
    "through .data": through_data,
    "through numpy": through_numpy,
    "through the storage": through_storage,
    "a collective": collective,
    "load_state_dict": lambda model: load(model, False),
    "load_state_dict(assign=True)": lambda model: load(model, True),
    "AdamW": lambda model: step(model, foreach=False),
    "AdamW(foreach=True)": lambda model: step(model, foreach=True),
    "AdamW(fused=True)": lambda model: step(model, fused=True),
    ".to(bfloat16).to(float32)": through_bfloat16,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"]
)
def test_a_change_is_noticed(adapted, change, mode, training):
    model = adapted("llama").train().model.train(training)
    with mode():
        before = model(IDS).logits
    CHANGES[change](model)
    with mode():
        after = model(IDS).logits
        for _, region in regions(model):
            region.bishare_factors.refresh()
        assert torch.equal(after, model(IDS).logits)
    assert not torch.equal(before, after)


def kept(model):
    return [region.bishare_factors._kept is not None for _, region in regions(model)]


def test_factors_are_kept_without_gradients_only(adapted):
    model = adapted("llama").train().model
    with torch.no_grad():
        model.train()(IDS)
        assert not any(kept(model))
        model.eval()(IDS)
        assert all(kept(model))
        first = [r.bishare_factors() for _, r in regions(model)]
        again = [r.bishare_factors() for _, r in regions(model)]
        assert all(
            a is b
            for one, other in zip(first, again, strict=True)
            for a, b in zip(one, other, strict=True)
        )
    model(IDS)
    assert not any(kept(model))
    for forget in (model.train, model.eval, lambda: model.to(torch.float64)):
        with torch.no_grad():
            model.eval()(IDS)
        assert all(kept(model))
        forget()
        assert not any(kept(model))


def test_they_are_kept_in_the_dtype_of_the_activations(adapted):
    model = adapted("llama").train().model
    _, region = next(regions(model))
    factors = region.bishare_factors
    half, double = (torch.zeros(1, 1, dtype=dtype) for dtype in (torch.bfloat16, torch.float64))
    plain = [factor.detach() for factor in factors(half)]
    assert {factor.dtype for factor in plain} == {torch.float32}
    with torch.no_grad():
        for x in (half, double, half):
            cast = factors(x)
            assert all(torch.equal(a, b.to(x.dtype)) for a, b in zip(cast, plain, strict=True))
            assert {factor.dtype for factor in cast} == {x.dtype}
            assert all(a is b for a, b in zip(cast, factors(x), strict=True))
        assert {factor.dtype for factor in factors(torch.zeros(1, 1, dtype=torch.long))} == {
            torch.float32
        }


def test_inference_mode_and_gradients_take_turns(adapted):
    model = adapted("llama").train().model
    expected = model(IDS).logits
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(model(IDS).logits, expected)
    with torch.inference_mode():
        model(IDS)
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "bishare" in n)


@pytest.mark.parametrize("order", ["offloaded first", "adapted first"])
@pytest.mark.parametrize("how", ["cpu", "disk", "map"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_offloading(adapted, planned, fresh_tensors, family, how, order, tmp_path):
    from accelerate import cpu_offload, disk_offload, dispatch_model

    from bishare_dsl.rewrite import adapt
    from bishare_dsl.testing.models import tiny_model

    def offload(model):
        if how == "cpu":
            cpu_offload(model, torch.device("cpu"))
        elif how == "disk":
            disk_offload(model, str(tmp_path), torch.device("cpu"))
        else:
            last = "model.layers.1" if family == "llama" else "transformer.h.1"
            # All that holds a tensor, by name, the adapter's modules too.
            device_map = {
                name: "disk" if name.startswith(last) else "cpu"
                for name, module in model.named_modules()
                if list(module.parameters(recurse=False))
            }
            dispatch_model(model, device_map, "cpu", offload_dir=str(tmp_path), force_hooks=True)

    case = adapted(family).train()
    with torch.no_grad():
        expected = case.model(IDS).logits
    model = tiny_model(family)
    plan = planned(model)
    tensors = {name: tensor.detach() for name, tensor in case.tensors.items()}
    steps = [offload, lambda m: adapt(m, plan, tensors)]
    for each in steps if order == "offloaded first" else reversed(steps):
        each(model)
    if order == "adapted first":
        assert any(p.is_meta for n, p in model.named_parameters() if "bishare" in n)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(IDS).logits, expected)
    if order == "adapted first" and how != "map":
        assert not any(kept(model))
    assert model(IDS).logits.isfinite().all()


def test_forwards_in_threads_forget_and_keep(adapted, monkeypatch):
    """What one thread has checked another may forget."""
    model = adapted("llama").train().model
    _, region = next(regions(model))
    factors = region.bishare_factors
    with torch.no_grad():
        expected = [factor.clone() for factor in factors()]

        def forgetful(*values):
            factors.refresh()
            return torch.equal(*values)

        monkeypatch.setattr(effective_factors, "_same", forgetful)
        assert all(torch.equal(a, b) for a, b in zip(factors(), expected, strict=True))


def test_pruned_tensors_are_seen(adapted):
    model = adapted("llama").train().model
    owned = model.get_submodule("bishare_tensors.default")
    with torch.no_grad():
        before = model(IDS).logits
    prune.random_unstructured(owned, "inter__A", 0.5)
    expected = model(IDS).logits
    assert not torch.equal(before, expected)
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, expected)
