"""One optimizer of a bank is as many optimizers as it has rows."""

import copy

import pytest
import torch

from bishare_dsl.testing.models import tiny_model
from bishare_dsl.train.optimizer import RowAdamW, Settings
from tests.batched.test_batches import filled
from tests.batched.test_training import losses, trains
from tests.methods.test_every_method import ONE_OF_EACH, TINY
from tests.support.parts import quick

NAMES = ["one", "two"]
RATES = {"one": 1e-3, "two": 3e-3}


def made(spec, text=None):
    base = tiny_model("llama", hidden_size=32, head_dim=8, num_key_value_heads=4)
    # In float64: of gradients near zero AdamW takes the sign, be they rounding or not.
    return trains(filled(base, dict.fromkeys(NAMES, text or spec), TINY.get(spec))).double()


def values(model, name):
    return {n: t.detach().clone() for n, t in model.bishare[name].tensors().items()}


def batches(steps):
    some = torch.Generator().manual_seed(3)
    return [torch.randint(3, 64, (2, 6), generator=some) for _ in range(steps)]


def alone(model, name, steps):
    """What becomes of an adapter that is trained on the row that is its own."""
    model.set_adapter(name)
    mine = [t for t in model.bishare.tensors().values() if t.requires_grad]
    optimizer = torch.optim.AdamW(mine, lr=RATES[name], weight_decay=0.1)
    for ids in batches(steps):
        row = ids[NAMES.index(name)][None]
        losses(model(row).logits, row).sum().backward()
        torch.nn.utils.clip_grad_norm_(mine, 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return values(model, name)


def together(model, steps):
    with model.bishare.bank(NAMES) as bank:
        optimizer = RowAdamW(bank.parameters, Settings(weight_decay=0.1, max_norm=0.5))
        optimizer.rates = [dict(enumerate(RATES.values())) for _ in bank.parameters]
        for ids in batches(steps):
            losses(model(ids, adapter_names=NAMES).logits, ids).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return {name: values(model, name) for name in NAMES}


@pytest.mark.parametrize("spec", quick(ONE_OF_EACH, ONE_OF_EACH[::2]))
def test_rows_train_as_they_do_alone(spec, request):
    model = made(spec)
    if not all(term.linear for term in model.bishare.plan.update_terms):
        return
    apart = [copy.deepcopy(model) for _ in NAMES]
    found = together(model, 3)
    for name, other in zip(NAMES, apart, strict=True):
        for tensor, wanted in alone(other, name, 3).items():
            torch.testing.assert_close(found[name][tensor], wanted, rtol=0, atol=1e-5)


def bank_of(rows, **how):
    parameter = torch.nn.Parameter(torch.tensor(rows))
    optimizer = RowAdamW([parameter], Settings(**how))
    optimizer.rates = [dict.fromkeys(range(len(rows)), 0.1)]
    return parameter, optimizer


def test_a_step_that_is_no_number_is_left_out_alone():
    bank, optimizer = bank_of([[1.0, 2.0], [3.0, 4.0]], max_norm=1.0, weight_decay=0.1)
    bank.grad = torch.tensor([[1.0, 1.0], [1.0, torch.nan]])
    optimizer.step()
    assert torch.equal(bank[1], torch.tensor([3.0, 4.0]))
    first = bank[0].detach().clone()
    assert (first < torch.tensor([1.0, 2.0])).all()
    bank.grad = torch.ones(2, 2)
    optimizer.step()
    assert (bank[0] < first).all()
    assert bank[1].isfinite().all()


def test_rows_that_have_no_step_stay_as_they_are():
    bank, optimizer = bank_of([[1.0], [2.0], [3.0]])
    optimizer.rates = [{0: 0.1, 2: 0.1}]
    bank.grad = torch.ones(3, 1)
    optimizer.step()
    assert optimizer.state[bank]["step"].tolist() == [1, 0, 1]
    assert bank[1] == 2
    assert bank.detach()[[0, 2]].flatten().tolist() == pytest.approx([0.9, 2.9])
    other, again = bank_of([[1.0], [2.0], [3.0]])
    again.load_state_dict(optimizer.state_dict())
    assert again.state[other]["step"].tolist() == [1, 0, 1]
