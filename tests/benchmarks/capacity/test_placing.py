"""What is compared at a budget is of that budget."""

import json
import warnings

import pytest
from storing import placing
from storing.bases import BASES
from storing.methods import FITTED, FIVE, LORA, OWN, PROPOSED, architecture, spec_of

from bishare_dsl import plan_spec

SHAPES = architecture("random")
FOUND = json.loads(FITTED.read_text())
BUDGETS = BASES["random"].budgets


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_topology_is_near_its_budget(budget):
    warnings.simplefilter("ignore")
    # Of shipped specs, those whose params are known: to find them takes long.
    known = {key.split()[2] for key, params in FOUND.items() if key.startswith(f"random {budget} ")}
    found = {
        name: plan_spec(spec[0], SHAPES, spec[1]).trainable
        for name in (*LORA, *OWN, *PROPOSED, *known)
        if (spec := spec_of("random", name, budget))
    }
    assert found.keys() >= {*LORA, *PROPOSED}
    # A LoRA on five kinds at the least budget is nearest with a module more.
    assert all(abs(count / budget - 1) <= 0.06 for count in found.values()), found


def test_ranks_are_dealt_evenly_and_a_half_of_the_layers_is_a_half():
    plan = plan_spec(placing.even(SHAPES, FIVE, BUDGETS[0]), SHAPES)
    assert {term.rank for term in plan.terms} == {1}
    late = plan_spec(placing.by_layer(SHAPES, ["up_proj"], range(3, 5), BUDGETS[0]), SHAPES)
    assert {site.layer for site in late.sites if late.terms_of[site.path]} == {3, 4}


def test_energy_is_bought_where_a_parameter_keeps_most():
    up, down, *_ = placing.sites(SHAPES, ["up_proj", "down_proj"])
    energies = {up: [9.0, 4.0, 1.0], down: [5.0, 0.1]}
    plan = plan_spec(placing.by_energy(energies, 3 * 256), SHAPES)
    assert {term.site: term.rank for term in plan.terms} == {up.path: 2, down.path: 1}


def test_draws_differ_and_are_near_the_budget():
    one, other = (placing.drawn(SHAPES, BUDGETS[0], seed) for seed in (0, 1))
    assert None not in (one, other)
    assert one != other
