"""Models of several stacks, and of other tasks than a causal language model's: adapted, trained, kept, exported."""

import pytest

from bishare_dsl import parse_spec, plan_spec
from bishare_dsl.models import inspect_model
from tests.support.checks import check_spec
from tests.support.families import TINY_TOWERS, tiny_model
from tests.support.parts import quick

pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")

TOWERS = {
    **{key: {"encoder": 2} for key in ("bert", "roberta", "deberta")},
    "modernbert": {"main": 2},
    "t5": {"encoder": 2, "decoder": 2},
    **{key: {"encoder": 2, "decoder": 3} for key in ("bart", "whisper")},
    "vit": {"vision": 2},
    **{key: {"language": 2, "vision": 2} for key in ("clip", "siglip", "llava", "qwen2_vl")},
    "qwen3_vl": {"language": 2, "vision": 3, "connector": 1},
}
SPEC = """
spec towers
target kind "*"
share block  A per tower, layer, in  B per module  rank 2
share local  per module  rank 1  where layer == -1
"""


@pytest.mark.parametrize("family", TINY_TOWERS)
def test_each_stack_counts_its_own_layers(family):
    found = {}
    for site in inspect_model(tiny_model(family)).sites:
        found.setdefault(site.tower, set()).add(site.layer)
    assert {tower: len(layers) for tower, layers in found.items()} == TOWERS[family]


SOME = quick(TINY_TOWERS, ["bert", "t5", "siglip", "qwen3_vl"])
"""An encoder, an encoder with a decoder, towers that meet at the end, and one that feeds another."""


@pytest.mark.parametrize("family", SOME)
def test_every_invariant(family):
    check_spec(parse_spec(SPEC), tiny_model(family))


def plan(family, target):
    text = f"spec s\ntarget {target}\nshare x per tower, layer, kind rank 1"
    return [*plan_spec(text, tiny_model(family)).sites]


def test_conditions_on_towers():
    found = plan("whisper", "tower == decoder and layer in -2..")
    assert {(s.tower, s.layer) for s in found} == {("decoder", 1), ("decoder", 2)}
    found = plan("whisper", "layer == layers - 1")  # In each tower the last layer is its own.
    assert {(s.tower, s.layer) for s in found} == {("encoder", 1), ("decoder", 2)}
    found = plan("qwen3_vl", "tower in {vision, connector}")
    assert {s.tower for s in found} == {"vision", "connector"}
