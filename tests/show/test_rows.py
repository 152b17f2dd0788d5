import pytest

from bishare_dsl.api import plan_spec
from bishare_dsl.language import parse_spec
from bishare_dsl.models import preset
from bishare_dsl.show import rows

MODEL = preset("smollm2-135m")
pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")


def plan(text):
    return plan_spec(parse_spec(f"spec s target q_proj, v_proj {text}"), MODEL)


def test_pools_are_counted_by_role():
    found = rows.roles(plan("share s A per layer B per module rank 4 gain rank init 0.1"))
    assert [(r.role, r.pools, r.members, r.rows, r.columns, r.parameters) for r in found] == [
        ("A", 30, (2, 2), (4, 4), (576, 576), 30 * 4 * 576),
        ("B", 60, (1, 1), (4, 4), (192, 576), 30 * 4 * (192 + 576)),
        ("gain_rank", 60, (1, 1), (1, 1), (4, 4), 60 * 4),
    ]


def test_a_module_with_a_start_that_is_subtracted_is_counted_once():
    start = "init A svd_vectors, B svd_scaled, core normal freeze A, B"
    found = rows.roles(plan(f"share s per module rank 4 via Core {start}"))
    assert {row.role for row in found} == {"A", "B", "core"}
    assert {row.members for row in found} == {(1, 1)}


def test_a_share_of_frozen_tensors_that_are_subtracted_has_no_numbers():
    text = "init A svd_vectors, B svd_scaled share a per module rank 2 freeze A, B"
    made = plan(f"{text} share b per module rank 2 via Core freeze A, B")
    assert made.shares["a"] == made.shares["a.start"] == 0 < made.shares["b"]
    first, _ = rows.shares(made)
    assert (first.name, first.trainable) == ("a", 0)
    assert "what it starts with is subtracted" in first.facts


def test_rows_of_roles_keep_the_order_of_the_shares():
    found = rows.roles(plan("share b per module rank 2 share a per layer rank 4 via SS freeze A"))
    assert [(r.share, r.role, r.trainable) for r in found] == [
        ("b", "A", True),
        ("b", "B", True),
        ("a", "A", False),
        ("a", "B", True),
    ]


def test_lora_is_counted_on_the_adapted_modules():
    made = plan("share s where v_proj per module rank 2")
    assert rows.lora_size(made) == 30 * 8 * (576 + 192)
    assert rows.lora_size(made, rank=2) == made.trainable
