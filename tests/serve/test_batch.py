"""Which tokens of a batch belong to which slot: every token once, with its own slot's rows."""

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from bishare_dsl.serve.batch import group_tokens

SLOTS = 12
BANK = SimpleNamespace(memory=torch.empty(0))
BATCHES = st.lists(st.tuples(st.integers(-1, SLOTS - 1), st.integers(1, 9)), min_size=1).map(
    lambda runs: [slot for slot, count in runs for _ in range(count)]
)


def slots_of(group):
    found = torch.arange(SLOTS)[group.slots]
    return found.unsqueeze(1).expand(-1, group.length).unsqueeze(2)


@given(BATCHES)
def test_each_token_is_served_by_its_own_slot_once(slots):
    x = torch.randn(len(slots), 1)
    output = torch.zeros(len(slots), 1)
    for group in group_tokens(BANK, slots):
        rows = group.rows(x)
        assert rows.shape[1:] == (group.length, 1)
        group.add(output, rows * (1 + slots_of(group)))
    expected = x * (1 + torch.tensor(slots)).unsqueeze(1)
    torch.testing.assert_close(output, expected)


@given(BATCHES)
def test_padding_at_most_doubles_the_work_twice_over(slots):
    """By a group's longest adapter, and by idle rows between its slots."""
    used = sum(slot >= 0 for slot in slots)
    placed = sum(len(slots_of(group)) * group.length for group in group_tokens(BANK, slots))
    assert placed < 4 * max(used, 1)


def test_nothing_is_copied_where_slots_lie_side_by_side_and_tokens_in_order():
    (group,) = group_tokens(BANK, [3, 4, 5])
    assert (group.slots, group.tokens, group.kept) == (slice(3, 6), None, None)


def test_a_prompt_of_one_adapter_is_one_row():
    (group,) = group_tokens(BANK, [7] * 5)
    assert (group.slots, group.length, group.tokens) == (slice(7, 8), 5, None)


def test_a_prompt_beside_others_is_a_group_of_its_own():
    short, long = group_tokens(BANK, [0, 1, 2] + [9] * 100 + [3])
    assert (short.length, long.length) == (1, 100)
    assert long.slots == slice(9, 10)


def test_slots_far_apart_are_looked_up():
    (group,) = group_tokens(BANK, [0, 11])
    assert group.slots.tolist() == [0, 11]


def test_a_batch_without_adapters_has_no_groups():
    assert group_tokens(BANK, [-1, -1]) == ()
