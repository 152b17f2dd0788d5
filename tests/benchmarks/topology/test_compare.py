"""What is compared with a proposal is of the proposal's size, and the same whenever it is drawn."""

import sys
from pathlib import Path

import pytest

import bishare_dsl
from bishare_dsl import plan_spec

sys.path.insert(0, str(Path(bishare_dsl.__file__).parents[1] / "benchmarks" / "topology"))
from compare import DRAWS, MODEL, PARTS, SHIPPED, drawn, methods
from sweep.methods import METHODS


@pytest.mark.parametrize("part", PARTS)
def test_every_spec_spends_its_budget_and_no_more(part):
    budget = PARTS[part]
    counts = {
        name: plan_spec(spec, MODEL, params=params).trainable
        for name, (spec, params) in SHIPPED[part].items()
    }
    counts |= {seed: plan_spec(drawn(budget, seed), MODEL).trainable for seed in range(DRAWS)}
    assert len(counts) == 7
    assert all(0.8 * budget < count <= budget for count in counts.values()), counts


def test_draws_differ_and_are_drawn_alike():
    budget = PARTS["45"]
    assert drawn(budget, 1) == drawn(budget, 1)
    assert len({drawn(budget, seed) for seed in range(DRAWS)}) == DRAWS


def test_the_stored_draws_are_those_of_the_code(monkeypatch, tmp_path):
    monkeypatch.setattr("compare.METHODS", dict(METHODS))
    names = methods("headlines", list(PARTS), tmp_path, make=False)
    for part, budget in PARTS.items():
        for seed in range(DRAWS):
            import compare

            path = Path(compare.METHODS[f"drawn{seed}@{part}"].spec)
            assert path.read_text() == drawn(budget, seed)
    assert {name.partition("@")[2] for name in names} == set(PARTS)
