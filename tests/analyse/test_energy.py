"""What common factors keep: all of it where they are common, and what chance gives where they are not."""

import json

import pytest
import torch

from bishare_dsl.analyse import energy
from bishare_dsl.analyse.analysis import analyse
from bishare_dsl.analyse.energy import joint, spectrum
from tests.analyse.conftest import BY_LAYER, INDEPENDENT, TARGET, architecture


def found(adapter, rank=4):
    rows = joint(adapter.updates, adapter.plan.base, [1, rank])
    return {(row.key, row.role): row.kept[rank] for row in rows}


def test_the_spectrum_is_that_of_the_dense_matrices(read):
    updates = [u for u in read(INDEPENDENT).updates if u.site.kind == "k_proj"]
    dense = [u.whole.left.t() @ torch.diag(u.whole.values) @ u.whole.right for u in updates]
    squares = torch.linalg.svdvals(torch.cat(dense)).double().square()[:32]
    torch.testing.assert_close(spectrum(updates, "A", 8)[:32], squares, rtol=1e-3, atol=1e-4)
    squares = torch.linalg.svdvals(torch.cat(dense, dim=1)).double().square()[:32]
    torch.testing.assert_close(spectrum(updates, "B", 8)[:32], squares, rtol=1e-3, atol=1e-4)
    squares = torch.linalg.svdvals(sum(dense)).double().square()[:32] / len(dense)
    torch.testing.assert_close(spectrum(updates, "A and B", 8)[:32], squares, rtol=1e-3, atol=1e-4)


def test_many_rows_are_iterated_for_to_the_same(read, monkeypatch):
    updates = read(f"spec p {TARGET} share one A per kind B per module rank 4").updates
    updates = [u for u in updates if u.site.kind == "k_proj"]
    exact = {role: spectrum(updates, role, 4)[:4] for role in energy.ROLES}
    monkeypatch.setattr(energy, "_LARGE", 4)
    for role, values in exact.items():
        torch.testing.assert_close(spectrum(updates, role, 4), values, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def independent(read):
    return found(read(INDEPENDENT, name="independent"))


@pytest.mark.parametrize(
    ("share", "key", "role"),
    [
        ("A per layer, in B per module", "layer", "A"),
        ("A per module B per kind", "kind", "B"),
        ("A per in, layer // 4 B per module", "layer // 4", "A"),
        ("per kind, layer // 2", "kind, layer // 2", "A and B"),
        ("A per in B per module", "model", "A"),
        ("per in, out", "model", "A and B"),
    ],
)
def test_planted_sharing_keeps_all_at_its_rank(read, independent, share, key, role):
    kept = found(read(f"spec planted {TARGET} share one {share} rank 4"))
    assert kept[key, role] == pytest.approx(1.0, abs=1e-3)
    assert independent[key, role] < 0.85
    if role == "A":
        assert kept[key, "B"] < kept[key, "A"]


def test_less_than_its_rank_keeps_less(read):
    adapter = read(f"spec planted {TARGET} share one A per layer, in B per module rank 4")
    base = adapter.plan.base
    (row,) = [r for r in joint(adapter.updates, base, [2, 4]) if (r.key, r.role) == ("layer", "A")]
    assert row.kept[2] < 0.8 < row.kept[4]


def test_chance_stands_beside_it(analysed):
    """Of independent updates it is what is measured; of shared ones it is what they would have alone."""
    analysis = analysed(INDEPENDENT)
    assert analysis.rank == 4
    for row in analysis.joint:
        assert row.kept == pytest.approx(row.chance, abs=0.03), row.joint
    shared = analysed(BY_LAYER, "a")
    (row,) = [r for r in shared.joint if (r.joint.key, r.joint.role) == ("layer", "A")]
    assert row.kept > 0.99
    assert row.chance < 0.65


def test_a_common_start_is_no_sharing(read):
    """Of known initial values the change is measured; where they stay, one start for all looks shared."""
    adapter = read(f"spec p {TARGET} share one A per in B per module rank 4 freeze A", change=0.1)
    assert found(adapter)["kind", "A"] == pytest.approx(1.0, abs=1e-3)
    changed = read(INDEPENDENT, change=0.03)
    assert changed.starts_known
    assert found(changed)["kind", "A"] < 0.85


def test_data_is_plain_json(read):
    analysis = analyse(read(f"spec p {TARGET} share one A per layer, in B per module rank 4"))
    figures = json.loads(json.dumps(analysis.data(), allow_nan=False))
    (row,) = [r for r in figures["joint"] if (r["key"], r["common"]) == ("layer", "A")]
    assert row["kept"] == pytest.approx(1, abs=1e-3)
    assert row["kept_by_rank"]["1"] < row["kept_by_rank"]["2"] < row["kept_by_rank"]["4"]
    assert len(figures["modules"]) == 40


def test_the_same_seed_measures_the_same(read):
    adapter = read(INDEPENDENT, model=architecture(2))
    one, same, other = (analyse(adapter, seed=seed) for seed in (1, 1, 2))
    assert [row.chance for row in one.joint] == [row.chance for row in same.joint]
    assert [row.chance for row in one.joint] != [row.chance for row in other.joint]
