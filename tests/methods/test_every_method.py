"""What holds of every spec that ships: it plans, it is explained, and it keeps every invariant."""

import pytest

from bishare_dsl.language import read_file
from bishare_dsl.models import preset
from bishare_dsl.plan import build_plan
from bishare_dsl.resources import shipped_specs
from bishare_dsl.testing.models import tiny_model
from tests.methods.conftest import LAYERS, spec
from tests.support.checks import check_spec
from tests.support.parts import quick

# Sizes that fit a tiny model: where a param sets none, the shipped value fits.
TINY = {
    "bd_lora": {"r": 4},
    "bishare_gt": {"size": 8, "gate_rank": 2},
    "bishare_ke": {"size": 4, "shared_rank": 2},
    "bishare_ss": {},
    "dora": {"r": 2},
    "gralora": {"r": 2},
    "hydralora": {"r": 2},
    "ia3": {},
    "library_core": {"r": 3},
    "library_joint": {"r": 3},
    "lily": {"r": 3},
    "loha": {"r": 2},
    "lora": {"r": 3},
    "lora_xs": {"r": 3},
    "masa": {"r": 2, "groups": 2},
    "melora": {"r": 2},
    "metatt": {"r": 3},
    "miss": {"r": 5},
    "mos": {"r": 3},
    "multilora": {"r": 2},
    "nola": {"r": 2, "count": 5},
    "pissa": {"r": 3},
    "prolora": {"r_shared": 5, "chunks_B": 3},
    "randlora": {"r": 2, "count": 2},
    "rasa": {"r": 3},
    "rslora": {"r": 3},
    "share_lora": {"r_share_a": 3, "r_share_b": 2, "r_share_ab": 2},
    "shared_core": {"r": 3},
    "shared_input": {"r": 3},
    "tied_lora": {"r": 3},
    "tiny_lora": {"count": 5},
    "uni_lora": {"r": 2, "length": 37},
    "up_pool": {"r": 3},
    "vb_lora": {"vectors": 9, "length": 4},
    "vera": {"r": 6},
}
SCALED = {
    name
    for name, path in shipped_specs().items()
    if any(share.is_magnitude for share in read_file(path)[0].shares)
}
"""Those with a magnitude, which is no product of factors."""


def _features(name):
    """What a spec brings that code may treat apart: its transforms, and words of its shares."""
    for share in read_file(shipped_specs()[name])[0].shares:
        yield share.via.transform if share.via else "Identity"
        yield from (word for word in ("gain", "freeze", "nonzero_start") if getattr(share, word))
        yield "magnitude" if share.is_magnitude else "low rank"


def _one_of_each():
    seen = set()
    for name in TINY:
        found = {*_features(name)}
        if not found <= seen:
            seen |= found
            yield name


ONE_OF_EACH = [*_one_of_each()]
"""Specs that together have every feature, for what depends on these alone."""


def test_all_are_here():
    assert set(TINY) == set(shipped_specs())


@pytest.mark.parametrize("name", quick(TINY, ONE_OF_EACH))
def test_invariants(name):
    check_spec(spec(name, **TINY[name]), tiny_model("llama", num_hidden_layers=LAYERS))


@pytest.mark.parametrize("name", [name for name in TINY if name != "bishare_gt"])
def test_it_plans_without_a_warning(name):
    plan, problems = build_plan(spec(name), preset("llama-7b"))
    assert plan.trainable > 0
    assert problems == ()


@pytest.mark.parametrize("name", TINY)
def test_it_says_what_it_is(name):
    """A file teaches: it starts with a comment, is named as it says, and is short."""
    lines = shipped_specs()[name].read_text("utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert read_file(shipped_specs()[name])[0].name == name
    assert len(lines) <= 35
