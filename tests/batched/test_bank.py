"""The slots: each tensor once an adapter, frozen ones once for all; what is put in comes out."""

import pytest
import torch

from bishare_dsl.api import plan_spec
from bishare_dsl.batched.bank import Slots
from bishare_dsl.batched.grouping import group_tokens
from bishare_dsl.models import preset
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.transforms import register
from tests.batched.test_layer import LINEAR, TOEPLITZ
from tests.methods.test_every_method import TINY
from tests.support.toeplitz import Toeplitz

pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")


def bank_of(spec, slots=3):
    plan = plan_spec(spec, tiny_model("llama"), TINY.get(spec))
    frozen = {t.name: torch.randn(t.shape) for t in plan.tensors if not t.trainable}
    return plan, Slots(plan, slots, frozen, torch.float32)


@pytest.mark.parametrize("spec", [*LINEAR, TOEPLITZ])
def test_an_adapter_takes_the_bytes_of_its_trained_tensors_and_frozen_ones_are_there_once(spec):
    register(Toeplitz)
    plan, bank = bank_of(spec)
    assert bank.layout.numbers == plan.trainable
    assert len(bank.pack({t.name: torch.randn(t.shape) for t in plan.tensors})) == plan.trainable
    frozen = [tensor for tensor in plan.tensors if not tensor.trainable]
    assert frozen or spec != "vera"
    assert all(bank.tensor(tensor.name).shape == tensor.shape for tensor in frozen)
    assert len(bank.memory) == 4 * plan.trainable + sum(tensor.size for tensor in frozen)


def test_tensors_that_factors_are_computed_of_are_not_rounded():
    """In a server that computes in 16 bits: the largest of rounded logits could be others."""
    for spec, dtype in (("vb_lora", torch.float32), ("bishare_ke", torch.bfloat16)):
        plan = plan_spec(spec, tiny_model("llama"), TINY[spec])
        assert Slots(plan, 1, {}, torch.bfloat16).memory.dtype is dtype


def test_what_is_put_in_comes_out():
    plan, bank = bank_of("bishare_ke")
    tensors = {t.name: torch.randn(t.shape) for t in plan.tensors}
    packed = bank.pack(tensors)
    bank.write_slot(1, packed)
    assert torch.equal(bank.read_slot(1), packed)
    assert not bank.read_slot(0).any()
    for name, tensor in tensors.items():
        assert torch.equal(bank.tensor(name)[1], tensor)
    bank.write_slot(1, torch.zeros_like(packed))
    assert not bank.memory.any()


@pytest.mark.parametrize(("spec", "own"), [("library_core", 640), ("library_joint", 2_688)])
def test_adapters_of_a_library_take_their_own_numbers_and_what_they_share_once(spec, own):
    """At the shapes of SmolLM2: 100 adapters, each of them a few kilobytes."""
    plan = plan_spec(spec, preset("smollm2-135m"))
    tensors = {t.name: torch.randn(t.shape) for t in plan.tensors}
    shared = sum(tensor.size for tensor in plan.tensors if tensor.name in plan.common)
    bank = Slots(plan, 100, tensors, torch.float32, library=True)
    assert (bank.layout.numbers, shared) == (own, 110_592)
    assert len(bank.memory) == 101 * own + shared
    assert bank.pack(tensors).nbytes == 4 * own
    assert len(Slots(plan, 100, {}, torch.float32).memory) == 101 * (own + shared)
    for name in plan.common:
        assert torch.equal(bank.tensor(name), tensors[name])


def test_what_is_brought_to_the_front_stays_what_it_was():
    _, bank = bank_of("bishare_ke", slots=6)
    held = [torch.randn(bank.layout.numbers) for _ in range(6)]
    for slot, packed in enumerate(held):
        bank.write_slot(slot, packed)
    for order in ([4, 0], [0, 5, 4, 1], [2]):
        bank.move_to_front(order)
        assert bank.row[order].tolist() == [*range(len(order))]
        assert all(torch.equal(bank.read_slot(slot), held[slot]) for slot in range(6))
    assert not bank.tensor(next(iter(bank.layout.own)))[6].any()


def test_the_adapters_of_a_batch_are_read_in_place():
    plan, bank = bank_of("lora", slots=9)
    name = plan.terms[0].tensors["A"]
    (group,) = group_tokens(bank, [8, 3]).groups
    before = group.cached("a", lambda: group.tensor(name), computed=False)
    bank.write_slot(8, bank.pack({t.name: torch.ones(t.shape) for t in plan.tensors}))
    assert before[0].all()
    assert not before[1].any()
    assert group.cached("a", lambda: None, computed=False) is before


def test_computed_factors_are_cached_until_an_adapter_of_their_rows_changes():
    _, bank = bank_of("bishare_gt", slots=9)

    def cached(slots):
        return group_tokens(bank, slots).groups[0].cached("a", object, computed=True)

    first = cached([8, 3])
    assert cached([8, 3, 8, 3]) is first
    bank.write_slot(3, torch.ones(bank.layout.numbers))
    written = cached([8, 3])
    assert written is not first
    moved = cached([3, 8])  # Their rows are swapped.
    assert moved is not written
    assert moved is not first
    group_tokens(bank, [3, 8, 5])
    assert not bank.copies  # None is kept for rows that no batch reads.
