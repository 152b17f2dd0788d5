"""Which tokens of a batch belong to which slot: every token once, with its own slot's rows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bishare_dsl.batched.grouping import APART, group_tokens

SLOTS = 12
BATCHES = st.lists(st.tuples(st.integers(-1, SLOTS - 1), st.integers(1, 9)), min_size=1).map(
    lambda runs: [slot for slot, count in runs for _ in range(count)]
)


class Bank:
    """A bank that notes which slots were brought to the front."""

    memory = torch.empty(0)
    row = np.arange(SLOTS + 1)
    brought = ()

    def move_to_front(self, slots):
        self.brought = [int(slot) for slot in slots]

    def keep_copies(self, kept):
        """Drop nothing: it has no copies."""


def grouped(slots):
    """The groups of a batch with the slots of their adapters, and the batch."""
    bank = Bank()
    batch = group_tokens(bank, slots)
    return [(group, bank.brought[group.rows]) for group in batch.groups], batch


@given(BATCHES)
def test_each_token_is_served_by_its_own_slot_once(slots):
    x, output = torch.randn(len(slots), 1), torch.zeros(len(slots), 1)
    groups, batch = grouped(slots)
    rows, room = batch.read(x), batch.room(output)
    for group, used in groups:
        assert group.of(rows).shape == (len(used), group.length, 1)
        factor = 1 + torch.tensor(used).view(-1, 1, 1)
        group.of(room).add_(group.of(rows) * factor)
    batch.add(output, room)
    expected = x * (1 + torch.tensor(slots)).unsqueeze(1)
    torch.testing.assert_close(output, expected)
    assert batch.rows.tolist() == [slot % (SLOTS + 1) for slot in slots]  # The last row for none.


@given(BATCHES)
def test_padding_at_most_doubles_the_work(slots):
    used = sum(slot >= 0 for slot in slots)
    groups, _ = grouped(slots)
    assert sum(len(own) * group.length for group, own in groups) < 2 * max(used, 1)


def test_nothing_is_copied_where_each_token_has_an_adapter_of_its_own():
    """Their slots are brought into the order of the tokens."""
    ((group, used),), batch = grouped([5, 3, 4])
    assert used == [5, 3, 4]
    assert (group.rows, batch.tokens, batch.places) == (slice(0, 3), slice(0, 3), None)
    output = torch.zeros(4, 2)
    batch.room(output).add_(1)
    assert output.sum(1).tolist() == [2, 2, 2, 0]


def test_prompts_beside_one_token_of_others_are_read_in_place_too():
    """Each in its own group; so many tokens are padded to no other's number."""
    slots = [9] * (APART + 2) + [2, 0, 1] + [7] * APART + [3] * APART
    groups, batch = grouped(slots)
    assert [used for _, used in groups] == [[9], [2, 0, 1], [7, 3]]
    assert [group.length for group, _ in groups] == [APART + 2, 1, APART]
    assert batch.places is None


def test_tokens_that_are_not_side_by_side_are_brought_together():
    ((group, used),), batch = grouped([1, 0, 1, -1, 0])
    assert (used, group.length) == ([1, 0], 2)
    assert batch.order.tolist() == [0, 2, 1, 4]
    assert batch.places.tolist() == [0, 2, 1, 4, 3]


@pytest.mark.parametrize("slots", [[], [-1, -1]])
def test_a_batch_without_adapters_has_no_groups(slots):
    assert grouped(slots)[1].groups == ()
