"""Rows of one batch under factors of different adapters."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from bishare_dsl.batched.rows import (
    RowBatch,
    factors_of,
    open_batch,
    open_batches,
    route_to_open_batch,
)
from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.grouped_rows import Call, Grouping, Place, RegionRows
from bishare_dsl.rewrite.magnify import magnify
from bishare_dsl.rewrite.rewritten import base_class, is_rewritten, restore_forward
from bishare_dsl.transforms.factor import Dense

PLACE = Place("x", in_block=True, in_expert=False, aside=False)
CPU = torch.device("cpu")
OWNERS = {
    "each its own": [0, 1, 2],
    "side by side": [0, 0, 1, 1],
    "one": [0, 0, 0],
    "mixed": [0, 1, 0, 2, 1, 0],
    "out of order": [1, 0],
}


def factors(owners: Sequence[int], repeats: int = 1) -> tuple[ops.OfRows, ops.OfRows]:
    call = Call(len(owners) * repeats, (4,), text=False)
    rows = RegionRows(Grouping.of(owners, CPU), PLACE, repeats > 1, call)
    return tuple(ops.OfRows(Dense(drawn(max(owners) + 1, 2, d)), rows) for d in (5, 6))  # type: ignore[return-value]


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("owners", OWNERS.values(), ids=OWNERS)
def test_each_row_meets_its_own(owners: Sequence[int], repeats: int) -> None:
    a, b = factors(owners, repeats)
    rows = len(owners) * repeats
    x, y = drawn(rows, 4, 5), drawn(rows, 4, 6)
    want = torch.stack(
        [
            y[row]
            + x[row] @ a.dense()[owners[row // repeats]].t() @ b.dense()[owners[row // repeats]]
            for row in range(rows)
        ]
    )
    torch.testing.assert_close(ops.up(y, ops.down(x, a), b), want)
    # As some forwards hand them on: tokens without a batch.
    flat = ops.up(y.flatten(0, 1), ops.down(x.flatten(0, 1), a), b)
    torch.testing.assert_close(flat, want.flatten(0, 1))


def test_no_copy_where_rows_come_in_order() -> None:
    for owners in ([0, 1, 2], [0, 0, 1, 1], [0] * 5):
        assert Grouping.of(owners, CPU).order is None


@pytest.mark.parametrize("owners", OWNERS.values(), ids=OWNERS)
def test_a_row_of_zeros_is_left_alone(owners: Sequence[int]) -> None:
    a, b = factors(owners)
    a.dense()[0] = b.dense()[0] = 0
    x, y = drawn(len(owners), 4, 5), drawn(len(owners), 4, 6)
    found = ops.up(y, ops.down(x, a), b)
    for row, owner in enumerate(owners):
        assert torch.equal(found[row], y[row]) == (owner == 0)


def test_a_region_leaves_its_call_to_the_open_batch() -> None:
    region, other = nn.Linear(3, 3), nn.Linear(3, 3)
    cls, x = type(region), drawn(2, 3)
    plain = region(x)
    route_to_open_batch(region)
    route_to_open_batch(other)
    assert base_class(type(region)) is cls
    assert not is_rewritten(region)
    assert torch.equal(region(x), plain)

    two, factor = Grouping(2, 1), drawn(1, 2, 3)
    batch = RowBatch(
        None,
        two,
        {region: lambda self, x: factors_of(self)},
        {region: (Dense(factor),)},
        {region: PLACE},
    )
    with open_batch(batch):
        assert torch.equal(region(x)[0].dense(), factor[0])
        assert torch.equal(other(x), nn.functional.linear(x, other.weight, other.bias))
        with open_batch(RowBatch(None, two, {other: lambda self, x: x}, {})):
            assert torch.equal(other(x), x)
            assert torch.equal(region(x)[0].dense(), factor[0])
    assert open_batches() == ()
    assert torch.equal(region(x), plain)
    restore_forward(region)
    assert type(region) is cls


def test_a_magnitude_meets_a_row_that_stands_for_all() -> None:
    """What no row depends on, such as positions, is computed once, and each adapter scales it by itself."""
    owners = [0, 1, 0]
    rows = RegionRows(Grouping.of(owners, CPU), PLACE, False, Call(len(owners), (4,), text=False))
    mu, layer, y = drawn(2, 1, 6), nn.Linear(5, 6), drawn(1, 4, 6)
    found = magnify(y, layer, ops.OfRows(Dense(mu), rows))
    each = [magnify(y[0], layer, Dense(mu[owner])) for owner in owners]
    torch.testing.assert_close(found, torch.stack(each))
