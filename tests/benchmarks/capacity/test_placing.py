"""What is compared at a budget is of that budget."""

import warnings

import pytest
from storing import placing
from storing.bases import BASES
from storing.methods import CHOSEN, FIVE, LORA, OWN, architecture, methods, spec_of

from bishare_dsl import plan_spec

SHAPES = architecture("random")
BUDGETS = BASES["random"].budgets


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_topology_is_near_its_budget(budget):
    warnings.simplefilter("ignore")
    known = methods("random")
    found = {
        name: plan_spec(spec[0], SHAPES, spec[1]).trainable
        for name in known
        if name not in ("gate", *CHOSEN) and (spec := spec_of("random", name, budget))
    }
    assert len(found) > 25
    # One more module of all five kinds is a twentieth of the least budget by itself.
    assert all(abs(count / budget - 1) <= 0.06 for count in found.values()), found
    assert budget != BUDGETS[0] or found.keys() >= {*LORA, *OWN}


def test_ranks_are_dealt_evenly_and_a_half_of_the_layers_is_a_half():
    plan = plan_spec(placing.even(SHAPES, FIVE, BUDGETS[0]), SHAPES)
    assert {pool.rank for pool in plan.pools} == {1}
    late = plan_spec(placing.by_layer(SHAPES, ["up_proj"], range(3, 5), BUDGETS[0]), SHAPES)
    assert {site.layer for site in late.sites if late.terms_of[site.path]} == {3, 4}


def test_energy_is_bought_where_a_parameter_keeps_most():
    up, down, *_ = placing.sites(SHAPES, ["up_proj", "down_proj"])
    energies = {up: [9.0, 4.0, 1.0], down: [5.0, 0.1]}
    plan = plan_spec(placing.by_energy(energies, 3 * 256), SHAPES)
    assert {pool.members[0]: pool.rank for pool in plan.pools} == {up.path: 2, down.path: 1}


def test_draws_differ_and_are_drawn_alike():
    one = placing.drawn(SHAPES, BUDGETS[0], 0)
    assert one == placing.drawn(SHAPES, BUDGETS[0], 0)
    assert one != placing.drawn(SHAPES, BUDGETS[0], 1)
