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
        ("scale 16 share a per module rank 8", "this is a LoRA of rank 8; `a` has scale 16"),
        ("share a per module rank 8 alpha 16 scale 1 / alpha", "`a` has scale 0.0625"),
        ("share a per kind rank 8 scale -2", "; `a` has scale -2"),
        ("dropout 0.95 share a per module rank 8", "; dropout is 0.95"),
        ("train norms except norm share a per module rank 8", "input_layernorm.weight` is trained"),
    ],
)
def test_what_differs_from_a_lora_is_told(text, said):
    assert said in conclusion(plan(text))


def test_the_table_says_what_is_left_out_and_what_starts_from_the_weights():
    (row,) = shared_table(plan("share a where layer > 2 per module rank 8 init A svd")).rows
    assert row[1:4] == ["54 of 60", "54, private, from svd", "54, private"]
