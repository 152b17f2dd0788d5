"""Adapters that are trained in one pass are what each of them is by itself."""

import math

import pytest
import torch
from storing.bases import BASES, VALUES
from storing.methods import spec_of
from storing.pairs import pairs
from storing.store import Load, Recipe, Stack, share_of, store, trained
from torch.nn import functional as F

RANDOM = BASES["random"]
SPECS = {
    "lora": ("lora", {"r": 1}),
    "ke": ("bishare_ke", {"size": 32, "r_local": 1}),
    "vera": ("vera", {"r": 8}),
    "pool": spec_of("random", "pool_up", 4_160),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_stack_trains_each_adapter_as_if_it_were_alone(name):
    load, runs = Load(RANDOM, "two", 24, 8), [(1e-2, 1), (3e-2, 1), (1e-2, 2)]
    together = store(load, SPECS[name], runs)
    for run, row in zip(runs, together, strict=True):
        (alone,) = store(load, SPECS[name], [run])
        assert alone["bits"] == pytest.approx(row["bits"], abs=0.2)
        assert alone["loss"] == pytest.approx(row["loss"], abs=2e-3)
    assert together[0]["bits"] != together[1]["bits"]


@pytest.mark.parametrize("name", SPECS)
def test_what_is_counted_is_what_the_adapted_model_says(name):
    load = Load(RANDOM, "one", 24, 8)
    (row,) = store(load, SPECS[name], [(1e-2, 3)])
    model = trained(load, SPECS[name], 1e-2, 3)
    model.lm_head = RANDOM.load().lm_head
    found = pairs(RANDOM, "one", 24, 3)
    with torch.no_grad():
        logits = model.eval()(found.keys).logits[:, -1, found.tokens]
    bits = 24 * math.log2(VALUES) - F.cross_entropy(
        logits, found.values, reduction="sum"
    ) / math.log(2)
    assert row["bits"] == pytest.approx(float(bits), abs=0.2)


@pytest.mark.parametrize("task", ["one", "two"])
def test_keys_differ_and_both_tokens_are_needed(task):
    found = pairs(RANDOM, task, 96, 0)
    assert len(found.keys.unique(dim=0)) == 96
    for place in range(found.keys.shape[1]) if task == "two" else ():
        assert len(found.keys[:, place].unique()) < 30
    assert not set(found.keys.flatten().tolist()) & set(found.tokens.tolist())
    assert pairs(RANDOM, task, 96, 0).keys.equal(found.keys)
    assert not pairs(RANDOM, task, 96, 1).keys.equal(found.keys)


def test_shares_part_the_numbers_and_a_factor_holds_one_back():
    ke = Stack(Load(RANDOM, "one", 24, 8), SPECS["ke"], [(1e-2, 1)])
    masks = ke.groups(share_of)
    assert sum(masks.values()).tolist() == [1.0] * ke.parameters
    before = ke.flat.detach().clone()
    ke.train(3, torch.tensor([1e-2]), Recipe(factors={"inter": 0.0}))
    changed = (ke.flat.detach() != before)[0]
    assert not changed[masks["inter"].bool()].any()
    assert changed[masks["local"].bool()].any()
