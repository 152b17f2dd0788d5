import pytest

from bishare_dsl.api import plan_spec
from bishare_dsl.language import parse_spec
from bishare_dsl.models import preset
from bishare_dsl.show.diff import difference

pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
MODEL = preset("smollm2-135m")


def diff(before, after, target="q_proj, v_proj"):
    plans = (
        plan_spec(parse_spec(f"spec s target {target} {text}"), MODEL) for text in (before, after)
    )
    return difference(*plans)


def test_a_plan_does_not_differ_from_itself():
    found = diff("share s per layer rank 2 via SS", "share s per layer rank 2 via SS")
    assert found.modules == 0
    assert not found.changes


def test_modules_that_share_with_others_are_counted_by_role():
    # The first ten layers share by two as before; B is as it was throughout.
    found = diff(
        "share s A per layer // 2  B per module rank 2",
        "share s A per layer // 2, layer >= 10 and kind q_proj  B per module rank 2",
    )
    [change] = found.changes
    assert (change.share, change.what) == ("s", "modules per A")
    assert (change.before, change.after) == ("4", "2")
    assert {path.split(".")[2] for path in change.sites} == {str(i) for i in range(10, 30)}
    assert len(change.sites) == 40 == found.modules
    [pair] = found.shares
    assert pair.before.trainable < pair.after.trainable


def test_pools_of_one_size_may_have_other_members():
    found = diff(
        "share s per kind, layer // 2 rank 2",
        "share s per kind, (layer + 1) // 2 rank 2",
    )
    assert [len(change.sites) for change in found.changes] == [60, 60]


def test_a_key_that_says_the_same_in_other_words_does_not_differ():
    found = diff("share s per layer, kind rank 2", "share s per path rank 2")
    assert found.modules == 0


def test_modules_that_a_share_leaves_or_takes_in_have_no_pool_there():
    [a, b] = diff(
        "share s per module rank 2", "share s where kind q_proj per module rank 2"
    ).changes
    assert (a.what, b.what) == ("modules per A", "modules per B")
    assert (a.before, a.after, len(a.sites)) == ("1", "0", 30)
    assert all(path.endswith("v_proj") for path in a.sites)


def test_shares_are_matched_by_name():
    found = diff(
        "share a per module rank 2 share b per layer rank 4 via SS",
        "share b per layer rank 4 via SS scale 2 share c per module rank 2 share d per kind rank 1",
    )
    assert [(p.name, p.before is None, p.after is None) for p in found.shares] == [
        ("a", False, True),
        ("b", False, False),
        ("c", True, False),
        ("d", True, False),
    ]
    assert [(c.share, c.what, len(c.sites), c.before, c.after) for c in found.changes] == [
        ("b", "scale", 60, "1", "2")
    ]
    assert found.modules == 60


def test_settings_are_compared_module_by_module():
    [change] = diff(
        "share s per module rank match kind { q_proj: 4; v_proj: 2 }",
        "share s per module rank match kind { q_proj: 2; v_proj: 2 }",
    ).changes
    assert (change.what, len(change.sites), change.before, change.after) == ("rank", 30, "4", "2")


def test_the_one_share_that_each_has_left_is_matched():
    found = diff("share a per module rank 2", "share b per module rank 2")
    assert [pair.name for pair in found.shares] == ["a -> b"]
    assert found.modules == 0
    [change, _] = diff("share a per module rank 2", "share b per kind rank 2").changes
    assert change.share == "a -> b"
    assert (change.before, change.after) == ("1", "30")


def test_a_role_that_one_transform_has_and_the_other_has_not():
    found = diff(
        "share s per module rank 2",
        "share s per module rank 2 via VectorBank(vectors = 8, length = 64) start nonzero",
        target="q_proj",
    )
    roles = {change.what: (change.before, change.after) for change in found.changes}
    assert roles["modules per A"] == ("1", "0")
    assert ("0", "1") in roles.values()


def test_parameters_that_one_plan_alone_trains_in_full():
    lora = "share s per module rank 2"
    found = diff(lora, f"{lora} train input_layernorm")
    [change] = found.changes
    assert (change.share, change.what) == ("train", "model.layers.*.input_layernorm.weight")
    assert (change.before, change.after, change.sites) == ("0", "17,280", ())
    assert found.modules == 0
