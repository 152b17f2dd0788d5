"""The singular vectors of an update, against the dense matrix."""

import pytest
import torch

from bishare_dsl.adapter.files import read_adapter
from bishare_dsl.analyse.read import read_updates
from bishare_dsl.analyse.update import Factored
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.export.effective import delta, effective_factors
from tests.analyse.conftest import INDEPENDENT, TARGET

KE = f"""spec planted {TARGET} scale 2 share own per module rank 2
share layers per layer rank 4 via KE(size = 32) share all per model rank 3 via SS"""


def dense(found: Factored) -> torch.Tensor:
    return found.left.t() @ torch.diag(found.values) @ found.right


def test_it_is_the_update_of_every_transform(plant):
    folder = plant(KE)
    stored = read_adapter(folder)
    tensors = stored.tensors()
    adapter = read_updates("adapter", stored)
    assert not adapter.starts_known
    assert len(adapter.updates) == 40
    for update in adapter.updates:
        exact = delta(stored.plan, tensors, update.site)
        torch.testing.assert_close(dense(update.whole), exact, atol=1e-5, rtol=1e-4)
        assert update.whole.rank == torch.linalg.matrix_rank(exact)
        assert update.whole.energy == pytest.approx(float(exact.square().sum()), rel=1e-5)
        top = float(torch.linalg.matrix_norm(exact, 2))
        assert update.whole.stable_rank == pytest.approx(update.whole.energy / top**2, rel=1e-4)


def test_the_norm_of_each_share_is_that_of_its_terms(plant):
    stored = read_adapter(plant(KE))
    tensors = stored.tensors()
    adapter = read_updates("adapter", stored)
    site = adapter.updates[7].site
    down, up = effective_factors(stored.plan, tensors, site)
    norms = adapter.parts[site.path]
    assert list(norms) == ["own", "layers", "all"]
    assert norms["layers"] == pytest.approx(float((up[2:6].t() @ down[2:6]).norm()), rel=1e-5)


def test_a_start_that_the_seed_tells_is_taken_away(plant):
    folder = plant(INDEPENDENT, change=1.0)
    stored = read_adapter(folder)
    adapter = read_updates("adapter", stored)
    assert adapter.starts_known
    tensors = stored.tensors()
    from bishare_dsl.adapter.initial import draw

    starts = draw(stored.plan, 0)
    site = adapter.updates[0].site
    down, up = effective_factors(stored.plan, tensors, site)
    first, _ = effective_factors(stored.plan, starts, site)
    change = up.t() @ (down - first)
    torch.testing.assert_close(dense(adapter.updates[0].trained), change, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dense(adapter.updates[0].whole), up.t() @ down, atol=1e-5, rtol=1e-4)


def test_chance_keeps_the_singular_values(read):
    update = read(INDEPENDENT).updates[0]
    random = torch.Generator().manual_seed(1)
    other = update.independent(random)
    assert torch.equal(other.whole.values, update.whole.values)
    identity = torch.eye(other.whole.rank)
    torch.testing.assert_close(other.whole.right @ other.whole.right.t(), identity)
    assert not torch.allclose(dense(other.whole), dense(update.whole), atol=1e-2)


def test_an_adapter_that_adds_nothing_is_told(plant, tmp_path):
    from bishare_dsl.adapter.files import save_adapter
    from bishare_dsl.adapter.initial import draw
    from bishare_dsl.compiler import make_plan
    from tests.analyse.conftest import architecture

    made = make_plan(f"{INDEPENDENT}\n", architecture())
    save_adapter(tmp_path / "new", made.plan, draw(made.plan, 0), made.text(), seed=0)
    with pytest.raises(AdapterError, match="adds nothing") as caught:
        read_updates("new", read_adapter(tmp_path / "new"))
    assert caught.value.problems[0].code == "BS850"
