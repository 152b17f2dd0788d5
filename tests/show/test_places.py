import random

import pytest

from bishare_dsl.show.places import Places
from tests.show.conftest import architecture, experts


def test_experts_parents_and_towers_are_named_where_they_tell_modules_apart(planned):
    _, plan = planned("share s per module rank 2", experts(2, 4), target="q_proj, up_proj")
    paths = [site.path for site in plan.sites if site.expert in (0, 1) and site.layer == 0]
    assert Places(plan).describe(paths, Places(plan).targets) == "up_proj of experts 0-1 of layer 0"
    kinds = {"self_attn.c_proj": (64, 64), "mlp.c_proj": (64, 64)}
    _, plan = planned("share s per module rank 2", architecture(2, kinds), target="c_proj")
    assert Places(plan).describe(["model.layers.0.mlp.c_proj"], {}) == "mlp.c_proj of layer 0"
    vision = architecture(2, {"self_attn.q_proj": (64, 64)}, "vision_tower.layers")
    _, plan = planned("share s per module rank 2", vision, target="q_proj")
    assert (
        Places(plan).describe([site.path for site in plan.sites], {})
        == "vision q_proj of layers 0-1"
    )
    assert Places(plan).describe([site.path for site in plan.sites], Places(plan).targets) == ""


def numbers(text):
    """Read runs of whole numbers back: `0-3, 5`."""
    text = text.split(" ", 1)[1].removesuffix(" (0 is left out)")
    ends = [run.split("-") for run in text.split(", ")]
    return {n for a, *b in ends for n in range(int(a), int(b[0] if b else a) + 1)}


def read_back(text, among):
    """Return the kind, layer and expert of what a sentence about some modules names."""
    every = {(kind, p.layer, p.expert) for kind, those in among.items() for p in those}
    found = set() if text else every
    for part in filter(None, text.split(" and ")):
        here = every
        for words in part.split(" of "):
            if words.startswith("layer"):
                here = {one for one in here if one[1] in numbers(words)}
            elif words.startswith("expert"):
                here = {one for one in here if one[2] in numbers(words)}
            elif words != "all layers":
                here = {one for one in here if one[0] in words.split(", ")}
        found |= here
    # Where a part says its layers, each does: else "q_proj and v_proj of layers 2-4" is of both.
    assert len({"layer" in part for part in text.split(" and ")}) == 1, text
    return found


@pytest.mark.parametrize("seed", range(40))
def test_what_is_said_read_back_is_the_set_of_modules(planned, seed):
    chance = random.Random(seed)
    model = experts(4, 3) if seed % 2 else architecture(5)
    _, plan = planned("share s per module rank 2", model, target='kind "*"')
    places, every = Places(plan), [site.path for site in plan.sites]
    kept = chance.choice([1, 0.9, 0.5])
    targets = [path for path in every if chance.random() < kept] or every
    chosen = [path for path in targets if chance.random() < chance.choice([0.3, 0.9])] or targets
    if chance.random() < 0.6:  # A part as conditions select it: some kinds in some layers.
        kinds, first = chance.sample(["q_proj", "v_proj", "up_proj"], 2), chance.randrange(4)
        at = {site.path: site for site in plan.sites}
        chosen = [p for p in targets if at[p].kind == kinds[0] or at[p].layer >= first] or targets
    among = places.by_kind(targets)
    said = places.describe(chosen, among)
    here = places.by_kind(chosen)
    wanted = {(kind, p.layer, p.expert) for kind, those in here.items() for p in those}
    assert read_back(said, among) == wanted
