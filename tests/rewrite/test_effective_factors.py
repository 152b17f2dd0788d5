"""Factors are made at each call: whoever writes to a tensor of an adapter, and however, the next call has it."""

import copy
import ctypes
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from bishare_dsl.rewrite import OwnedTensors

IDS = torch.tensor([[5, 9, 13, 21, 34, 3, 8]])


def stores(model):
    return [module for module in model.modules() if isinstance(module, OwnedTensors)]


def tensors_of(model):
    return [parameter for store in stores(model) for parameter in store.parameters()]


def each(write):
    """A change that writes to each tensor of the adapter by itself, without gradients."""

    def change(model):
        with torch.no_grad():
            for tensor in tensors_of(model):
                write(tensor)

    return change


def replaced(make):
    """A change that puts another parameter in the place of each."""

    def change(model):
        for store in stores(model):
            for name, parameter in list(store.named_parameters()):
                make(store, name, parameter.detach() + 0.1)

    return change


def register(store, name, value):
    delattr(store, name)
    store.register_parameter(name, nn.Parameter(value))


def stepped(make):
    """A change by a step of an optimizer, with calls without gradients between its parts."""

    def change(model):
        loss = model(IDS, labels=IDS).loss
        with torch.no_grad():
            model(IDS)
        loss.backward()
        with torch.no_grad():
            model(IDS)
        make([p for p in model.parameters() if p.requires_grad]).step()
        model.zero_grad()

    return change


def optimizer(kind, **options):
    return stepped(lambda parameters: kind(parameters, lr=0.1, **options))


def loaded(**options):
    def change(model):
        state = {k: v + 0.1 if "bishare" in k else v for k, v in model.state_dict().items()}
        model.load_state_dict(state, **options)

    return change


def reshaped(write):
    """A write to a view that shares its memory."""
    return each(lambda tensor: write(tensor.detach().view(-1)))


def memory(tensor):
    return (ctypes.c_float * tensor.numel()).from_address(tensor.data_ptr())


def through_memory(tensor):
    # As a collective on `p.detach()` writes: nothing counts it.
    memory(tensor)[0] += 3.0


def through_numpy(tensor):
    tensor.detach().numpy()[0, 0] = 3.0


def through_dlpack(tensor):
    torch.from_dlpack(tensor.detach()).add_(0.1)


def through_storage(tensor):
    tensor.untyped_storage().copy_((tensor.detach() + 0.1).untyped_storage())


def exchanged(tensor):
    tensor.untyped_storage().resize_(0)
    tensor.untyped_storage().resize_(tensor.numel() * 4)
    tensor.fill_(0.2)


def new_data(tensor):
    tensor.data = tensor.data + 0.1


def set_(tensor):
    tensor.set_(tensor.detach() + 0.1)


def swapped(tensor):
    torch.utils.swap_tensors(tensor, nn.Parameter(tensor.detach() + 0.1))


def in_a_copy(write):
    """What is copied is written to by itself, and goes on in place of what it was copied from."""

    def change(model):
        copied = write(model)
        each(lambda tensor: tensor.add_(0.1))(copied)
        for store, other in zip(stores(model), stores(copied), strict=True):
            for name, parameter in other.named_parameters():
                register(store, name, parameter.detach())

    return change


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_another_type(model, dtype):
    # It rounds, and may well put back what it made at the address where it was.
    each(lambda tensor: tensor.add_(0.1))(model)
    for store in stores(model):
        store.to(dtype).to(torch.float32)


def through_meta(model):
    for store in stores(model):
        values = {name: value + 0.1 for name, value in store.state_dict().items()}
        store.to("meta").to_empty(device="cpu").load_state_dict(values)


def parametrized(model):
    class Plus(nn.Module):
        def forward(self, tensor):
            return tensor + 0.1

    for store in stores(model):
        for name, _ in list(store.named_parameters()):
            parametrize.register_parametrization(store, name, Plus())


def parametrized_and_written(model):
    parametrized(model)
    each(lambda tensor: tensor.add_(0.1))(model)


def unparametrized(model):
    parametrized(model)
    for store in stores(model):
        for name in list(store.parametrizations):
            parametrize.remove_parametrizations(store, name)


def normed(model):
    for store in stores(model):
        for name, _ in list(store.named_parameters()):
            parametrizations.weight_norm(store, name)
    each(lambda tensor: tensor.mul_(1.5))(model)


def pruned(model):
    for store in stores(model):
        for name, _ in list(store.named_parameters()):
            prune.random_unstructured(store, name, 0.5)


def vectors(model):
    vector = nn.utils.parameters_to_vector(tensors_of(model)).detach()
    nn.utils.vector_to_parameters(vector + 0.1, tensors_of(model))


def clipped_to(model):
    nn.utils.clip_grad_norm_(tensors_of(model), 1.0)
    torch._foreach_mul_([tensor.detach() for tensor in tensors_of(model)], 1.5)


def averaged(model):
    average = torch.optim.swa_utils.AveragedModel(model, avg_fn=lambda a, new, n: (a + new) / 2)
    average.update_parameters(model)
    each(lambda tensor: tensor.add_(0.2))(model)
    average.update_parameters(model)
    for tensor, mean in zip(tensors_of(model), tensors_of(average.module), strict=True):
        tensor.data.copy_(mean)


def by_adapter(model):
    for store in stores(model):
        for tensor in store():
            tensor.data.add_(0.1)


def initialised(model):
    torch.manual_seed(0)
    for tensor in tensors_of(model):
        nn.init.normal_(tensor, std=0.3)


CHANGES = {
    "add_": each(lambda t: t.add_(0.1)),
    "mul_": each(lambda t: t.mul_(2)),
    "copy_": each(lambda t: t.copy_(t + 0.1)),
    "fill_": each(lambda t: t.fill_(0.1)),
    "zero_, then add_": each(lambda t: t.zero_().add_(0.2)),
    "lerp_": each(lambda t: t.lerp_(t + 1, 0.1)),
    "clamp_": each(lambda t: t.clamp_(-0.05, 0.05)),
    "index": each(lambda t: t.__setitem__((0, 0), 3.0)),
    "slice": each(lambda t: t[:1].add_(1.0)),
    "out=": each(lambda t: torch.add(t, 0.1, out=t)),
    "view": reshaped(lambda v: v.add_(0.1)),
    "index_add_": reshaped(lambda v: v.index_add_(0, torch.tensor([0]), torch.tensor([2.0]))),
    "masked_fill_": reshaped(lambda v: v.masked_fill_(v > 0, 0.3)),
    "scatter_": reshaped(lambda v: v.scatter_(0, torch.tensor([0]), 2.0)),
    "transposed": each(lambda t: t.t().add_(0.1)),
    ".data": each(lambda t: t.data.add_(0.1)),
    ".data[0]": each(lambda t: t.data[0].add_(0.5)),
    ".detach()": each(lambda t: t.detach().add_(0.1)),
    "new .data": each(new_data),
    "set_": each(set_),
    "swap_tensors": each(swapped),
    "numpy": each(through_numpy),
    "dlpack": each(through_dlpack),
    "memory": each(through_memory),
    "storage": each(through_storage),
    "storage of another size": each(exchanged),
    "foreach": clipped_to,
    "vector_to_parameters": vectors,
    "nn.init": initialised,
    "through the owner": by_adapter,
    "register_parameter": replaced(register),
    "setattr": replaced(lambda store, name, value: setattr(store, name, nn.Parameter(value))),
    "_parameters": replaced(
        lambda store, name, value: store._parameters.update({name: nn.Parameter(value)})
    ),
    "load_state_dict": loaded(),
    "load_state_dict(assign=True)": loaded(assign=True),
    "load_state_dict(strict=False)": loaded(strict=False),
    "SGD": optimizer(torch.optim.SGD, foreach=False),
    "SGD(foreach)": optimizer(torch.optim.SGD, foreach=True),
    "SGD(fused)": optimizer(torch.optim.SGD, fused=True),
    "SGD(momentum)": optimizer(torch.optim.SGD, momentum=0.9),
    "AdamW": optimizer(torch.optim.AdamW, foreach=False),
    "AdamW(foreach)": optimizer(torch.optim.AdamW, foreach=True),
    "AdamW(fused)": optimizer(torch.optim.AdamW, fused=True),
    "AdamW(amsgrad)": optimizer(torch.optim.AdamW, amsgrad=True),
    "Adam": optimizer(torch.optim.Adam),
    "Adamax": optimizer(torch.optim.Adamax),
    "NAdam": optimizer(torch.optim.NAdam),
    "RAdam": optimizer(torch.optim.RAdam),
    "RMSprop": optimizer(torch.optim.RMSprop),
    "Adagrad": optimizer(torch.optim.Adagrad),
    "Adadelta": stepped(lambda parameters: torch.optim.Adadelta(parameters, lr=100.0)),
    "ASGD": optimizer(torch.optim.ASGD),
    "Rprop": optimizer(torch.optim.Rprop),
    "averaged": averaged,
    ".to(bfloat16).to(float32)": lambda model: through_another_type(model, torch.bfloat16),
    ".to(float16).to(float32)": lambda model: through_another_type(model, torch.float16),
    "meta and back": through_meta,
    "a parametrization": parametrized,
    "a parametrization, and written": parametrized_and_written,
    "a parametrization, and removed": unparametrized,
    "weight_norm": normed,
    "pruned": pruned,
    "a copy": in_a_copy(copy.deepcopy),
    "a pickle": in_a_copy(by_pickle),
    "torch.save": in_a_copy(by_torch_save),
}
"""Ways to write to tensors."""


@pytest.fixture(scope="module")
def trained(adapted):
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
def test_offloading(adapted, planned, fresh_tensors, family, how, order, tmp_path):
    from accelerate import cpu_offload, disk_offload, dispatch_model

    from bishare_dsl.rewrite import adapt
    from tests.support.families import tiny_model

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
