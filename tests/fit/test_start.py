"""The leading eigenvectors: what no other shared factor keeps more of."""

import math

import pytest
import torch

from bishare_dsl.compiler import make_plan
from bishare_dsl.convert.effective import delta
from bishare_dsl.fit.family import Family
from bishare_dsl.fit.fit import fit
from bishare_dsl.fit.pairs import read_pairs
from bishare_dsl.fit.start import leading
from tests.fit.conftest import write_trained

HEAD = "spec s\ntarget q_proj, k_proj, v_proj, up_proj, down_proj\nshare "
SHARED = {
    "A": "a  A per in  B per adapter, module  rank 5\n",
    "B": "a  A per adapter, module  B per out  rank 5\n",
}
CORE = "a  A per in  B per out  core per adapter, module  rank 5  via Core\n"


@pytest.fixture
def loras(base, tmp_path):
    """Four LoRAs that have nothing in common."""
    return {str(i): write_trained(base, tmp_path / str(i), "lora", i, r=3) for i in range(4)}


@pytest.mark.parametrize("role", ["A", "B"])
def test_one_sweep_from_them_is_the_best_there_is(role, loras, base):
    plan = make_plan(HEAD + SHARED[role], base).plan
    found = fit(plan, read_pairs(loras.items()), sweeps=1)
    lost = whole = 0.0
    groups = {}
    for stored in loras.values():
        for site in stored.plan.sites:
            dense = delta(stored.plan, stored.tensors(), site).double()
            rows = dense if role == "A" else dense.t()
            groups.setdefault(rows.shape[1], []).append(rows)
    for matrices in groups.values():
        values = torch.linalg.svdvals(torch.cat(matrices)).square()
        lost += float(values[5:].sum())
        whole += float(values.sum())
    assert found.error == pytest.approx(math.sqrt(lost / whole), rel=1e-4)


def test_with_a_core_one_sweep_is_nearer_than_many_from_random_values(loras, base, monkeypatch):
    plan = make_plan(HEAD + CORE, base).plan
    given = read_pairs(loras.items())
    first = fit(plan, given, sweeps=1)
    monkeypatch.setattr("bishare_dsl.fit.fit.leading", lambda family, given, values: values)
    drawn = fit(plan, given, sweeps=4)
    assert first.error < 1.01 * drawn.error
    assert first.error < 0.99


def test_it_depends_on_nothing_but_what_is_given_and_leaves_the_rest(loras, base):
    plan = make_plan(f"{HEAD}wide per kind rank 2\nshare own per module rank 1\n", base).plan
    family = Family(plan, ("0",))
    given, begun = read_pairs([("0", loras["0"])]), family.draw(0)
    one, two = leading(family, given, begun), leading(family, given, begun)
    changed = {v for v in one if not torch.equal(one[v], begun[v])}
    assert all(torch.equal(one[v], two[v]) for v in one)
    assert {plan.tensor[name].share for _, name in changed} == {"wide"}
    for variable in changed:
        gram = one[variable] @ one[variable].t()
        assert torch.allclose(gram, torch.eye(len(gram), dtype=gram.dtype), atol=1e-9)
    assert begun.keys() == one.keys()


def test_a_frozen_factor_and_one_of_another_width_are_left(loras, base):
    for share in (
        "per kind rank 2 init B kaiming_uniform freeze A, B gain rank init 0",
        "per model rank 2 via KE(size = 8)",
    ):
        plan = make_plan(f"{HEAD}a {share}\n", base).plan
        family = Family(plan, ("0",))
        begun = family.draw(0)
        found = leading(family, read_pairs([("0", loras["0"])]), begun)
        assert all(torch.equal(found[v], begun[v]) for v in begun)
