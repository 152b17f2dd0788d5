"""Rows of one batch under factors of different adapters."""

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


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_no_copy_where_rows_come_in_order():
    for owners in ([0, 1, 2], [0, 0, 1, 1], [0] * 5):
        assert Grouping.of(owners, CPU).order is None


def test_a_region_leaves_its_call_to_the_open_batch():
    region, other = nn.Linear(3, 3), nn.Linear(3, 3)
    cls, x = type(region), drawn(2, 3)
    plain = region(x)
    route_to_open_batch(region)
    route_to_open_batch(other)
    assert base_class(type(region)) is cls
    assert not is_rewritten(region)
    assert torch.equal(region(x), plain)

    two, factor = Grouping(2, 1), drawn(1, 2, 3)
    forward = {region: lambda self, x: factors_of(self)}
    batch = RowBatch(None, two, forward, {region: (Dense(factor),)}, {region: PLACE})
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


def test_a_magnitude_meets_a_row_that_stands_for_all():
    """What no row depends on, such as positions, is computed once, and each adapter scales it by itself."""
    owners = [0, 1, 0]
    rows = RegionRows(Grouping.of(owners, CPU), PLACE, False, Call(len(owners), (4,), text=False))
    mu, layer, y = drawn(2, 1, 6), nn.Linear(5, 6), drawn(1, 4, 6)
    found = magnify(y, layer, ops.OfRows(Dense(mu), rows))
    each = [magnify(y[0], layer, Dense(mu[owner])) for owner in owners]
    torch.testing.assert_close(found, torch.stack(each))
