"""The pairs that are exported: as they are, without the rows that say nothing, or cut to a rank."""

import pytest
import torch

from bishare_dsl.convert.effective import delta, effective_factors
from bishare_dsl.convert.export import export_adapter
from bishare_dsl.convert.lora import plain_lora

# By construction these have fewer ranks than rows: two terms that together exceed a width, copies of a
# chunk, a Kronecker product of a factor with more rows than columns.
FEWER = {
    "widths": "share x per module rank 15 share y per module rank 10",
    "Rotation": "share x per module rank 8 via Rotation(chunks_A = 16, stride = 4)",
    "KE": "share x per model rank 8 via KE(size = 4, shared_rank = 8)",
}


def test_factors_are_exported_as_they_are(made):
    plan, tensors = made("share x per module rank 2 scale 2 share y per layer rank 3 via SS")
    for pair in plain_lora(plan, tensors):
        down, up = effective_factors(plan, tensors, pair.site)
        assert torch.equal(pair.down, down)
        assert torch.equal(pair.up, up)
        assert pair.rank == pair.rows == 5


@pytest.mark.parametrize("text", FEWER.values(), ids=FEWER)
@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
def test_rows_that_say_nothing_new_are_left_out(made, text):
    plan, tensors = made(text)
    pairs = list(plain_lora(plan, tensors))
    assert any(pair.rank < pair.rows for pair in pairs)
    for pair in pairs:
        want = delta(plan, tensors, pair.site)
        assert pair.rows == plan.rows(pair.site.path)
        # As many rows as ranks, and the same update but for rounding.
        assert torch.linalg.matrix_rank(want, rtol=1e-5) == pair.rank
        assert (pair.up.t() @ pair.down - want).norm() < 1e-6 * want.norm()


def test_a_transform_that_is_wrong_about_its_reach_loses_nothing(made, monkeypatch):
    from bishare_dsl.transforms.shipped.identity import Identity

    plan, tensors = made("share x per module rank 4")
    monkeypatch.setattr(Identity, "reach", lambda *_: 3)
    for pair in plain_lora(plan, tensors):
        assert torch.equal(pair.up.t() @ pair.down, delta(plan, tensors, pair.site))


@pytest.mark.parametrize("rank", [1, 3, 5, 9])
def test_a_rank_gives_the_best_approximation_and_its_error(made, model, rank, tmp_path):
    plan, tensors = made("share x per module rank 2 scale 2 share y per layer rank 3 via SS")
    report = export_adapter(tmp_path / "lora", plan, tensors, model, rank=rank)
    lost = norm = 0.0
    for pair, site in zip(plain_lora(plan, tensors, rank=rank), report.sites, strict=True):
        want = delta(plan, tensors, pair.site).double()
        left, values, right = torch.linalg.svd(want, full_matrices=False)
        best = left[:, :rank] @ values[:rank].diag() @ right[:rank]
        got = pair.up.double().t() @ pair.down.double()
        assert pair.rank == site.rank == min(rank, 5)
        torch.testing.assert_close(got, best, rtol=1e-5, atol=1e-5)
        assert site.error == pytest.approx(float((got - want).norm() / want.norm()), abs=1e-6)
        assert (site.error > 0.05) == (rank < 5)
        lost, norm = lost + float((got - want).norm() ** 2), norm + float(want.norm() ** 2)
    assert report.total_error == pytest.approx((lost / norm) ** 0.5, abs=1e-6)
    assert report.worst.error == max(site.error for site in report.sites)
    assert rank > 3 or f"{report.worst.error:.2g} (`{report.worst.path}`)" in str(report)


def test_what_a_type_rounds_is_in_the_error(made, model, tmp_path):
    plan, tensors = made("share x per module rank 2")
    report = export_adapter(tmp_path / "lora", plan, tensors, model, dtype=torch.bfloat16)
    pairs = plain_lora(plan, tensors, dtype=torch.bfloat16)
    for pair, site in zip(pairs, report.sites, strict=True):
        assert pair.down.dtype == pair.up.dtype == torch.bfloat16
        want = delta(plan, tensors, pair.site)
        error = (pair.up.float().t() @ pair.down.float() - want).norm() / want.norm()
        assert site.error == pytest.approx(float(error), rel=1e-2)
        assert 1e-4 < site.error < 1e-2
