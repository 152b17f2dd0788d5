"""What is compared with a proposal is of the proposal's size, and the same whenever it is drawn."""

import sys
from pathlib import Path

import pytest

import bishare_dsl
from bishare_dsl import plan_spec

sys.path.insert(0, str(Path(bishare_dsl.__file__).parents[1] / "benchmarks" / "topology"))
from compare import DRAWS, MODEL, PARTS, SHIPPED, drawn, main, methods


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


def test_the_stored_draws_are_those_of_the_code():
    found = methods("headlines", list(PARTS))
    for part, budget in PARTS.items():
        for seed in range(DRAWS):
            assert Path(found[f"drawn{seed}@{part}"].spec).read_text() == drawn(budget, seed)
    assert {name.partition("@")[2] for name in found} == set(PARTS)


@pytest.mark.parametrize(
    ("prefixes", "chosen"),
    [
        ("ss,drawn1", ["ss@15", "drawn1@15"]),
        ("proposed", ["proposed@15"]),
    ],
)
def test_methods_limit_what_runs_and_a_proposal_is_made_when_it_is_wanted(
    monkeypatch, tmp_path, prefixes, chosen
):
    swept = []
    monkeypatch.setattr("compare.HERE", tmp_path)
    (tmp_path / "specs").mkdir()
    monkeypatch.setattr("compare.METHODS", {})
    monkeypatch.setattr("compare.proposed", lambda *_: "a proposal")
    monkeypatch.setattr("compare.sweep", lambda _, options: swept.append(options))
    monkeypatch.setattr(
        "sys.argv", ["compare.py", "--tasks", "languages", "--parts", "15", "--methods", prefixes]
    )
    main()
    assert [(o.tasks, o.methods) for o in swept] == [(["languages"], chosen)]
    made = tmp_path / "specs" / "proposed-languages-15.share"
    assert made.exists() == (prefixes == "proposed")
