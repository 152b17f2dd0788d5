"""The leading eigenvectors: what no other shared factor keeps more of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bishare_dsl.compiler import make_plan
from bishare_dsl.export.effective import delta
from bishare_dsl.fit.family import Family
from bishare_dsl.fit.fit import fit
from bishare_dsl.fit.pairs import read_pairs
from bishare_dsl.fit.start import leading
from bishare_dsl.models import Architecture
from tests.fit.conftest import write_trained

TARGET = "target q_proj, k_proj, v_proj, up_proj, down_proj"
SHARED = {
    "A": f"spec s {TARGET} share a  A per in  B per adapter, module  rank 5",
    "B": f"spec s {TARGET} share a  A per adapter, module  B per out  rank 5",
}
CORE = f"spec s {TARGET} share a  A per in  B per out  core per adapter, module  rank 5  via Core"


@pytest.fixture
def loras(base: Architecture, tmp_path: Path) -> dict[str, Any]:
    """Four LoRAs that have nothing in common."""
    return {str(i): write_trained(base, tmp_path / str(i), "lora", i, r=3) for i in range(4)}


def text(spec: str) -> str:
    return spec.replace(" target", "\ntarget").replace(" share", "\nshare") + "\n"


@pytest.mark.parametrize("role", ["A", "B"])
def test_one_sweep_from_them_is_the_best_there_is(
    role: str, loras: dict[str, Any], base: Architecture
) -> None:
    plan = make_plan(text(SHARED[role]), base).plan
    _, _, report = fit(plan, read_pairs(loras.items()), sweeps=1)
    lost = whole = 0.0
    groups: dict[int, list[torch.Tensor]] = {}
    for stored in loras.values():
        for site in stored.plan.sites:
            dense = delta(stored.plan, stored.tensors(), site).double()
            rows = dense if role == "A" else dense.t()
            groups.setdefault(rows.shape[1], []).append(rows)
    for matrices in groups.values():
        values = torch.linalg.svdvals(torch.cat(matrices)).square()
        lost += float(values[5:].sum())
        whole += float(values.sum())
    assert report.error == pytest.approx(math.sqrt(lost / whole), rel=1e-4)


def test_with_a_core_one_sweep_is_nearer_than_many_from_random_values(
    loras: dict[str, Any], base: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(text(CORE), base).plan
    given = read_pairs(loras.items())
    _, _, first = fit(plan, given, sweeps=1)
    monkeypatch.setattr("bishare_dsl.fit.fit.leading", lambda family, given, values: values)
    _, _, drawn = fit(plan, given, sweeps=4)
    assert first.error < 1.01 * drawn.error
    assert first.error < 0.99


def test_it_depends_on_nothing_but_what_is_given_and_leaves_the_rest(
    loras: dict[str, Any], base: Architecture
) -> None:
    spec = text(f"spec s {TARGET} share wide per kind rank 2 share own per module rank 1")
    plan = make_plan(spec, base).plan
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


def test_a_frozen_factor_and_one_of_another_width_are_left(
    loras: dict[str, Any], base: Architecture
) -> None:
    for share in (
        "per kind rank 2 init B kaiming_uniform freeze A, B gain rank init 0",
        "per model rank 2 via KE(size = 8)",
    ):
        plan = make_plan(text(f"spec s {TARGET} share a {share}"), base).plan
        family = Family(plan, ("0",))
        begun = family.draw(0)
        found = leading(family, read_pairs([("0", loras["0"])]), begun)
        assert all(torch.equal(found[v], begun[v]) for v in begun)
