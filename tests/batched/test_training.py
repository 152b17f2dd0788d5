"""Training mixed batches: each row's adapter gets the gradients that it gets alone."""

import copy
from contextlib import ExitStack, nullcontext

import pytest
import torch

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.testing.models import tiny_model
from tests.batched.test_batches import IDS, NAMES, filled, logits_alone


@pytest.fixture
def model(shared):
    return trains(copy.deepcopy(shared))


def trains(model, *, dropout=False):
    """In training mode, every adapter of it, without dropout."""
    model.train()
    for adapter in model.bishare.adapters.values():
        adapter.set_trainable(True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0
    return model


def losses(logits, ids=IDS):
    """One for each row."""
    flat = logits[:, :-1].flatten(0, 1).float()
    each = torch.nn.functional.cross_entropy(flat, ids[:, 1:].flatten(), reduction="none")
    return each.view(len(ids), -1).mean(1)


def gradients(model):
    found = {}
    for name, adapter in model.bishare.adapters.items():
        for tensor, parameter in adapter.tensors().items():
            if parameter.grad is not None:
                found[name, tensor], parameter.grad = parameter.grad, None
    return found


def of_each_alone(model, names, **how):
    found = {}
    active = model.bishare.active
    for row, name in enumerate(names):
        if name in (None, "__base__"):
            continue
        model.set_adapter(name)
        losses(model(IDS[row : row + 1], **how).logits, IDS[row : row + 1]).sum().backward()
        for key, gradient in gradients(model).items():
            found[key] = found.get(key, 0) + gradient
    model.bishare.set_adapter(active)
    trains(model)
    return found


def close(found, wanted, **how):
    how = how or {"rtol": 1e-4, "atol": 5e-5}
    zero = {key for key, gradient in found.items() if not gradient.any()}
    assert found.keys() - zero == {key for key, gradient in wanted.items() if gradient.any()}
    for key in found.keys() - zero:
        torch.testing.assert_close(found[key], wanted[key], **how)


@pytest.mark.parametrize("names", [n for n in NAMES.values() if n != [None] * 4])
def test_each_adapter_gets_the_gradients_of_its_rows(model, names):
    losses(model(IDS, adapter_names=names).logits).sum().backward()
    close(gradients(model), of_each_alone(model, names))


@pytest.mark.parametrize("tied", [False, True])
def test_tables_of_tokens(tied):
    """Padding gives no gradient, and dropout drops whole tokens."""
    base = tiny_model("llama", pad_token_id=5, tie_word_embeddings=tied)
    target = "lm_head, embed_tokens" if tied else "embed_tokens"
    text = f"spec s\ntarget {target}\nshare x per module rank 2 dropout 0.5 scale 3"
    model = filled(base, {"a": text, "b": text})
    ids = IDS.clone()
    ids[:, 2] = 5
    names = ["a", "b", "b", "a"]
    with torch.no_grad():
        for order in (names, sorted(names)):
            wanted = logits_alone(model, order, ids)
            torch.testing.assert_close(model(ids, adapter_names=order).logits, wanted)
    trains(model)
    losses(model(ids, adapter_names=names).logits, ids).sum().backward()
    found = gradients(model)
    name = next(n for n, t in model.bishare.tensors().items() if 64 in t.shape)
    for adapter, rows in {"a": [0, 3], "b": [1, 2]}.items():
        seen = found[adapter, name].abs().sum(0 if found[adapter, name].shape[1] == 64 else 1)
        others = [i for row in rows for i in ids[row, :-1].tolist() if i != 5]
        assert set(seen.nonzero().flatten().tolist()) == (set(range(64)) if tied else set(others))
    trains(model, dropout=True)
    for adapter in model.bishare.adapters.values():
        for _, store in adapter.parts.owned:
            store.dropout.p = 0.5
    one, other = (model(ids, adapter_names=names).logits.detach() for _ in range(2))
    assert not torch.equal(one, other)


def test_dropout_drops_other_values_in_each_row(shared):
    model = trains(copy.deepcopy(shared), dropout=True)
    same = IDS[:1].expand(4, -1)
    names = ["b", "b", None, "a"]
    torch.manual_seed(0)
    found = model(same, adapter_names=names).logits
    torch.manual_seed(0)
    assert torch.equal(found, model(same, adapter_names=names).logits)
    assert not torch.allclose(found[0], found[1])
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(found[2:], model(same, adapter_names=names).logits[2:])


@pytest.mark.parametrize("members", [["a", "a2", "a3"], []], ids=["bank", "apart"])
def test_an_open_batch_sees_each_step(model, members, monkeypatch):
    """Of a bank the rows are copied once for a call, not for each tensor: there are thousands."""
    names, ids, copies, whole = ["a3", "a"], IDS[:2], [], torch.Tensor.index_select
    copy = lambda *given: copies.append(given) or whole(*given)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "index_select", copy)
    with model.bishare.bank(members) if members else nullcontext() as bank:
        apart = [t for name in names for t in model.bishare[name].tensors().values()]
        tensors = bank.parameters if bank else [t for t in apart if t.requires_grad]
        optimizer = torch.optim.SGD(tensors, lr=0.1)
        with model.bishare.rows(names):
            for _ in range(2):
                losses(model(ids).logits, ids).sum().backward()
                optimizer.step()
            found = model(ids).logits
        assert len(copies) == (3 if bank else 0)
        torch.testing.assert_close(found, model(ids, adapter_names=names).logits)


@pytest.mark.each_once
@pytest.mark.parametrize("banks", [["a"], ["a a2"], ["a a2", "a3"], ["a3 a", "a2"]])
@pytest.mark.parametrize("names", [["a", "a2", "a3", None], ["a3", "a", "a2", "a"]])
def test_adapters_of_a_bank_stand_next_to_others_of_their_plan(shared, names, banks):
    """Those of no bank, and of another one."""
    model = copy.deepcopy(shared).eval()
    with torch.no_grad():
        want = model(IDS, adapter_names=names).logits
        with ExitStack() as stack:
            for members in banks:
                stack.enter_context(model.bishare.bank(members.split()))
            found = model(IDS, adapter_names=names).logits
    torch.testing.assert_close(found, want)


def test_gradients_of_gradients(model):
    def twice(run, names):
        mine = {n: t for n, t in model.bishare["a2"].tensors().items() if t.requires_grad}
        first = torch.autograd.grad(run().sum(), [*mine.values()], create_graph=True)
        sum(g.square().sum() for g in first).backward()
        return {key[1]: g for key, g in gradients(model).items() if key[0] == "a2"}

    # The fused attention of a CPU has no second derivative.
    model.get_base_model().set_attn_implementation("eager")
    names = ["a", None, "a2", "b"]
    found = twice(lambda: losses(model(IDS, adapter_names=names).logits)[2:3], names)
    model.set_adapter("a2")
    trains(model)
    close(found, twice(lambda: losses(model(IDS[2:3]).logits, IDS[2:3]), names))


@pytest.mark.parametrize("opened", ["for a call", "for a block"])
def test_layers_that_are_computed_again(model, opened):
    names = ["a", "b", None, "a2"]
    wanted = of_each_alone(model, names)
    base = model.get_base_model()
    base.activation_checkpointing_enable()
    if opened == "for a call":
        found = losses(model(IDS, adapter_names=names).logits)
    else:
        with model.bishare.rows(names):
            found = losses(model(IDS).logits)
    model(IDS[:1])  # Of the active one alone: whose rows are computed again does not depend on it.
    found.sum().backward()
    close(gradients(model), wanted)
    losses(model(IDS).logits).sum().backward()
    assert {name for name, _ in gradients(model)} == {"a"}
    base.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(AdapterError, match="BS689"):
        model(IDS, adapter_names=names)


def test_factors_are_not_kept_for_the_backward(model):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor
    ):
        model(IDS, adapter_names=["a", "a2", "a3", "a"])
    # By the ranks of the islands: only the products are there, which have a column for each token.
    found = {shape for shape in kept if len(shape) == 3 and shape[1] in (9, 19)}
    assert found == {(4, 9, 7), (4, 19, 7)}
