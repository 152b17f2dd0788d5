"""Adapters that are trained in one pass are what each of them is by itself."""

import math

import pytest
import torch
from storing import bases
from storing import store as stacks
from storing.bases import BASES, TURN, VALUES, Base
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


@pytest.mark.parametrize("task", ["one", "two"])
def test_keys_that_follow_a_turn_s_beginning_do_not_see_one_another(task, monkeypatch):
    monkeypatch.setattr(bases, "smollm2", lambda blocks: RANDOM.load())
    embed = RANDOM.load().model.embed_tokens
    monkeypatch.setattr(stacks, "trunk", lambda: lambda input_ids, use_cache: [embed(input_ids)])
    base = Base("tiny", (0, 0, 0), 0, follows=True)
    stack = Load(base, task, 24, 8).stack(SPECS["lora"], [(1e-2, 3), (1e-2, 4)])
    stack.train(4, torch.tensor([1e-2, 1e-2]))
    found = pairs(base, task, 24, 3)
    own = {name: pieces[0] for name, pieces in {**stack.pieces(), **stack.fixed}.items()}
    ids = torch.cat([torch.tensor(TURN).expand(24, -1), found.keys], 1)
    with torch.no_grad():
        alone = torch.func.functional_call(stack.adapted, own, (ids,)).logits[:, -1]
        together = stack.logits(torch.arange(24).expand(2, -1))[0]
    torch.testing.assert_close(together, alone @ stack.heads[0].t(), rtol=0, atol=1e-4)
