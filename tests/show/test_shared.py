import pytest

from bishare_dsl.api import plan_spec
from bishare_dsl.language import parse_spec
from bishare_dsl.models import preset
from bishare_dsl.show.shared import conclusion, shared_table

pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")


def plan(text):
    return plan_spec(parse_spec(f"spec s target q_proj, v_proj {text}"), preset("smollm2-135m"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("share a per module rank 8", "nothing is shared: this is a LoRA of rank 8"),
        ("scale 16 share a per module rank 8", "this is a LoRA of rank 8; `a`: scale 16"),
        ("share a per module rank 8 alpha 16 scale 1 / alpha", "`a`: scale 0.0625"),
        ("share a per kind rank 8 scale -2", "; `a`: scale -2"),
        ("scale 2 share a per kind rank 4 share b per layer, kind rank 8", "; `a`, `b`: scale 2"),
        (
            "share a per kind rank 4 via SS(slice = leading)",
            "; `a`: scale 1; `a`: via SS(slice = leading)",
        ),
        (
            "share a per module rank 8 via BlockDiagonal(blocks = 3)",
            "; an update has rank 24 at most",
        ),
        (
            "share a where layer in 1..15 per kind rank 8",
            "; `a`: scale 1; `a`: in layers 1-15 alone",
        ),
        (
            "share a per module rank match layer { 0..9: 2; else: 4 }",
            "a LoRA of rank 2-4; `a`: scale 1; `a`: rank 2 in layers 0-9, 4 in layers 10-29",
        ),
        ("share a per module rank 1 + layer", "this is a LoRA of rank 1-30"),
        ("alpha 32 scale 1 share a per module rank 8", "this is a LoRA of rank 8; `a`: scale 1"),
        ("share a per module rank 8 magnitude per module", "this is a DoRA of rank 8"),
        ("share a per module rank 8 magnitude per module plain", "this is a LoRA of rank 8"),
        ("dropout 0.95 share a per module rank 8", "; dropout is 0.95"),
        ("train norms except norm share a per module rank 8", "input_layernorm.weight` is trained"),
    ],
)
def test_what_differs_from_a_lora_is_told(text, said):
    assert said in conclusion(plan(text))


def test_the_table_says_what_is_left_out_ranks_numbers_and_starts():
    text = "share a where layer > 2 per module rank 8 init A svd gain out init 2"
    (row,) = shared_table(plan(text)).rows
    assert row[1:3] == ["54 of 60", "8"]
    assert row[3:6] == ["54, private, from svd", "54, private", "54, private, from 2"]
    assert row[6:] == [27 * (2 * 8 * 576 + 8 * (576 + 192)) + 27 * (576 + 192), "0%"]
