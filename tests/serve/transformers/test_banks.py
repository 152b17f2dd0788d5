"""Banks: many adapters in rows of bytes."""

import pytest
import torch

from bishare_dsl import Plan, plan_spec
from bishare_dsl.serve.transformers.banks import Bank, Kinds
from bishare_dsl.testing.models import tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plan() -> Plan:
    text = """
        spec s
        target q_proj, up_proj
        share local per module rank 2
        share all per model rank 3 via KE(size = 8)
        """
    return plan_spec(text, tiny_model("llama"))


def kinds(plan: Plan, dtype: torch.dtype = torch.float32) -> Kinds:
    return {tensor.name: (dtype, CPU) for tensor in plan.tensors}


def fill(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    for tensor in tensors.values():
        tensor.copy_(torch.randn(tensor.shape, generator=random))
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_rows_do_not_touch(plan: Plan) -> None:
    bank = Bank(plan, kinds(plan))
    slots = [bank.take() for _ in range(5)]
    values = [fill(slot.tensors(), seed) for seed, slot in enumerate(slots)]
    for slot, value in zip(slots, values, strict=True):
        assert same(slot.tensors(), value)
        assert {n: tuple(t.shape) for n, t in slot.tensors().items()} == {
            t.name: t.shape for t in plan.tensors
        }
        assert all(t.is_contiguous() for t in slot.tensors().values())


def test_large_tensors_are_aligned(plan: Plan) -> None:
    for tensor in Bank(plan, kinds(plan)).take().tensors().values():
        assert tensor.data_ptr() % (64 if tensor.nbytes >= 64 else 16) == 0


def test_bytes_of_many_adapters() -> None:
    plan = plan_spec("bishare_ke", "smollm2-135m", {"r_inter": 8, "size": 64})
    bank = Bank(plan, {t.name: (torch.float32, torch.device("meta")) for t in plan.tensors})
    for _ in range(2000):
        bank.take()
    assert bank.nbytes <= 1.02 * 2000 * 4 * sum(tensor.size for tensor in plan.tensors)


def test_a_row_is_taken_again(plan: Plan) -> None:
    bank = Bank(plan, kinds(plan))
    slots = [bank.take() for _ in range(300)]
    full = bank.nbytes
    for slot in slots[100:200]:
        bank.give_back(slot)
    values = fill(slots[99].tensors(), 0)
    for _ in range(100):
        assert bank.take().row >= 0
    assert bank.nbytes <= 1.02 * full
    assert same(slots[99].tensors(), values)


def test_memory_is_given_up(plan: Plan) -> None:
    bank = Bank(plan, kinds(plan))
    slots = [bank.take() for _ in range(10)]
    for slot in slots:
        bank.give_back(slot)
    assert bank.nbytes == 0


def test_converting(plan: Plan) -> None:
    mixed = kinds(plan)
    mixed[plan.tensors[0].name] = (torch.bfloat16, CPU)
    bank = Bank(plan, mixed)
    slots = [bank.take(), bank.take()]
    values = [fill(slot.tensors(), seed) for seed, slot in enumerate(slots)]
    bank.convert(lambda tensor: tensor)
    addresses = [t.data_ptr() for t in slots[0].tensors().values()]
    bank.convert(lambda tensor: tensor.to("cpu"))
    assert [t.data_ptr() for t in slots[0].tensors().values()] == addresses
    bank.convert(lambda tensor: tensor.double())
    for slot, value in zip(slots, values, strict=True):
        assert same(slot.tensors(), {name: t.double() for name, t in value.items()})
    assert {dtype for dtype, _ in bank.kinds.values()} == {torch.float64}
    third = fill(bank.take().tensors(), 4)
    assert {t.dtype for t in third.values()} == {torch.float64}
