"""Figure 4: ranks of updates, contributions of shares."""

import pytest

from bishare_dsl.analyse import ranks
from tests.analyse.conftest import TARGET

TIERS = "share own per module rank 2 share layers per layer rank 3 via {} share all per model rank 4 via {}"


@pytest.mark.parametrize(
    ("transform", "rank"), [("SS", 9), ("KE(size = 32)", 9), ("GT(size = 64)", 4)]
)
def test_rank_by_transform(read, transform, rank):
    """Slices and kernels reach the sum of the ranks; a gate adds a rank of 1 whatever its rank is."""
    adapter = read(f"spec planted {TARGET} {TIERS.format(transform, transform)}")
    rows = ranks.modules(adapter)
    assert {row.rank for row in rows} == {rank}
    assert all(1 <= row.stable_rank <= row.rank for row in rows)


def test_contributions_are_parts_of_one(read):
    rows = ranks.modules(read(f"spec planted {TARGET} {TIERS.format('SS', 'SS')}"))
    for row in rows:
        assert sum(row.parts.values()) == pytest.approx(1)
    *kinds, everything = ranks.kinds(rows)
    assert [row.kind for row in kinds] == ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    assert everything.modules == 40
    assert everything.parts["own"] == pytest.approx(sum(row.parts["own"] for row in rows) / 40)
