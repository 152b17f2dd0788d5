"""The slots: each tensor once an adapter, frozen ones once for all; what is put in comes out."""

import pytest
import torch

from bishare_dsl.api import plan_spec
from bishare_dsl.serve.vllm.bank import Bank
from bishare_dsl.serve.vllm.batch import group_tokens
from bishare_dsl.testing.models import tiny_model
from tests.methods.test_every_method import TINY

pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")


def bank_of(spec, slots=3):
    plan = plan_spec(spec, tiny_model("llama"), TINY[spec])
    frozen = {t.name: torch.randn(t.shape) for t in plan.tensors if not t.trainable}
    return plan, Bank(plan, slots, frozen, torch.float32)


@pytest.mark.parametrize("spec", ["bishare_ke", "bishare_gt", "vera", "nola"])
def test_an_adapter_takes_the_bytes_of_its_trained_tensors(spec):
    plan, bank = bank_of(spec)
    assert bank.nbytes_each == 4 * plan.trainable


def test_what_is_put_in_comes_out():
    plan, bank = bank_of("bishare_ke")
    tensors = {t.name: torch.randn(t.shape) for t in plan.tensors}
    packed = bank.pack(tensors)
    bank.put(1, packed)
    taken = bank.take(1)
    assert all(torch.equal(taken[part], packed[part]) for part in packed)
    (group,) = group_tokens([1])
    for term in plan.terms:
        for role, value in bank.tensors(group, term.tensors).items():
            assert torch.equal(value, tensors[term.tensors[role]].unsqueeze(0))
    bank.put(1, None)
    assert not any(row.any() for row in bank.take(1).values())


def test_slots_side_by_side_are_read_in_place_and_others_copied():
    plan, bank = bank_of("lora", slots=9)
    names = plan.terms[0].tensors
    packed = bank.pack({t.name: torch.ones(t.shape) for t in plan.tensors})
    (near,), (apart,) = group_tokens([4, 5]), group_tokens([0, 8])
    before, copied = bank.tensors(near, names)["A"], bank.tensors(apart, names)["A"]
    bank.put(4, packed)
    bank.put(8, packed)
    assert before[0].all()
    assert not copied[1].any()
