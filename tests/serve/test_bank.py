"""The slots: each tensor once an adapter, frozen ones once for all; what is put in comes out."""

import pytest
import torch

from bishare_dsl.api import plan_spec
from bishare_dsl.serve.bank import Bank
from bishare_dsl.serve.batch import group_tokens
from bishare_dsl.testing.models import tiny_model
from tests.methods.test_every_method import TINY

pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")


def bank_of(spec, slots=3):
    plan = plan_spec(spec, tiny_model("llama"), TINY[spec])
    frozen = {t.name: torch.randn(t.shape) for t in plan.tensors if not t.trainable}
    return plan, Bank(plan, slots, frozen, torch.float32)


@pytest.mark.parametrize("spec", ["bishare_ke", "bishare_ke_rowwise", "bishare_ss", "vera"])
def test_an_adapter_takes_the_bytes_of_its_trained_tensors(spec):
    plan, bank = bank_of(spec)
    assert bank.nbytes_each == 4 * plan.trainable


def test_of_gates_the_effective_factors_are_kept_which_are_smaller():
    plan, bank = bank_of("bishare_gt")
    gated = [term for term in plan.terms if term.transform == "GT"]
    sites = {site.path: site for site in plan.sites}
    made = sum(term.rows * (sites[term.site].d_in + sites[term.site].d_out) for term in gated)
    own = sum(tensor.size for tensor in plan.tensors if tensor.share == plan.terms[0].share)
    assert bank.nbytes_each == 4 * (made + own) < 4 * plan.trainable


def test_what_is_put_in_comes_out():
    plan, bank = bank_of("bishare_ke")
    tensors = {t.name: torch.randn(t.shape) for t in plan.tensors}
    packed = bank.pack(tensors)
    bank.put(1, packed)
    assert torch.equal(bank.take(1), packed)
    assert not bank.take(0).any()
    for name, place in bank.layout.places.items():
        assert torch.equal(bank.view(place)[1], tensors[name])
    bank.put(1, torch.zeros_like(packed))
    assert not bank.memory.any()


def test_what_is_frozen_is_there_once():
    _, bank = bank_of("vera")
    frozen = [place for place in bank.layout.places.values() if place.common]
    assert frozen
    assert all(bank.view(place).stride(0) == 0 for place in frozen)
    assert len(bank.memory) == 4 * bank.layout.numbers + bank.layout.common


def test_what_is_brought_to_the_front_stays_what_it_was():
    _, bank = bank_of("bishare_ke", slots=6)
    held = [torch.randn(bank.layout.numbers) for _ in range(6)]
    for slot, packed in enumerate(held):
        bank.put(slot, packed)
    for order in ([4, 0], [0, 5, 4, 1], [2]):
        bank.bring(order)
        assert bank.row[order].tolist() == [*range(len(order))]
        assert all(torch.equal(bank.take(slot), held[slot]) for slot in range(6))
    assert not bank.view(next(iter(bank.layout.places.values())))[6].any()


def test_the_adapters_of_a_batch_are_read_in_place():
    plan, bank = bank_of("lora", slots=9)
    place = bank.layout.places[plan.terms[0].tensors["A"]]
    (group,) = group_tokens(bank, [8, 3]).groups
    before = group.tensor(place)
    bank.put(8, bank.pack({t.name: torch.ones(t.shape) for t in plan.tensors}))
    assert before[0].all()
    assert not before[1].any()


def test_what_was_made_of_tensors_is_forgotten_when_they_change():
    _, bank = bank_of("bishare_ke")
    (group,) = group_tokens(bank, [1]).groups
    packed = torch.ones(bank.layout.numbers)
    for write in (lambda: bank.put(2, packed), lambda: bank.bring([2]), lambda: bank.bring([2, 1])):
        view, copy = group.view("a", object), group.copy("a", object)
        assert group.copy("a", object) is copy
        write()
        assert group.copy("a", object) is not copy
        assert group.view("a", object) is view
