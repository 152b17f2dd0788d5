"""Factors are made at each call: whoever writes to a tensor of an adapter, and however, the next call has it."""

import copy
import ctypes

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from bishare_dsl.rewrite import OwnedTensors
from tests.rewrite.adapted import adapted, planned
from tests.support.families import tiny_model
from tests.support.regions import adapt

IDS = torch.tensor([[5, 9, 13, 21, 34, 3, 8]])


def stores(model):
    return [module for module in model.modules() if isinstance(module, OwnedTensors)]


def each(write):
    """A change that writes to each tensor of the adapter by itself, without gradients."""

    def change(model):
        with torch.no_grad():
            for store in stores(model):
                for tensor in store.parameters():
                    write(tensor)

    return change


def replaced(model):
    for store in stores(model):
        for name, parameter in list(store.named_parameters()):
            setattr(store, name, nn.Parameter(parameter.detach() + 0.1))


def stepped(model):
    """A step of an optimizer, with calls without gradients between its parts."""
    loss = model(IDS, labels=IDS).loss
    with torch.no_grad():
        model(IDS)
    loss.backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    model.zero_grad()


def loaded(model):
    state = {k: v + 0.1 if "bishare" in k else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)


def through_memory(tensor):
    # As a collective on `p.detach()` writes: nothing counts it.
    (ctypes.c_float * tensor.numel()).from_address(tensor.data_ptr())[0] += 3.0


def new_data(tensor):
    tensor.data = tensor.data + 0.1


def parametrized(model):
    class Plus(nn.Module):
        def forward(self, tensor):
            return tensor + 0.1

    for store in stores(model):
        for name, _ in list(store.named_parameters()):
            parametrize.register_parametrization(store, name, Plus())


CHANGES = {
    "add_": each(lambda t: t.add_(0.1)),
    "view": each(lambda t: t.detach().view(-1).add_(0.1)),
    "memory": each(through_memory),
    "new .data": each(new_data),
    "swap_tensors": each(lambda t: torch.utils.swap_tensors(t, nn.Parameter(t.detach() + 0.1))),
    "setattr": replaced,
    "load_state_dict": loaded,
    "AdamW": stepped,
    "a parametrization": parametrized,
}
"""Ways to write to tensors."""


@pytest.fixture(scope="module")
def trained():
    return adapted("llama").train()


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_written_is_read(trained, change):
    case = copy.deepcopy(trained)
    model = case.model.eval()
    outside = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    before = {}
    for name, mode in outside.items():
        with mode():
            before[name] = model(IDS).logits
    CHANGES[change](model)
    with torch.no_grad():
        expected = case.reference()(IDS).logits
    for training in (True, False):
        model.train(training)
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-3, atol=1e-4)
        for name, mode in outside.items():
            with mode():
                after = model(IDS).logits
            torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-4)
            assert not torch.allclose(after, before[name], rtol=1e-3, atol=1e-4)


@pytest.mark.each_once
@pytest.mark.parametrize("order", ["offloaded first", "adapted first"])
@pytest.mark.parametrize("how", ["cpu", "disk", "map"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_offloading(family, how, order, tmp_path):
    from accelerate import cpu_offload, disk_offload, dispatch_model

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
    assert model(IDS).logits.isfinite().all()
