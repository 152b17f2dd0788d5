from bishare_dsl.models.site import Architecture
from bishare_dsl.show.picture import picture
from bishare_dsl.show.text import text
from tests.show.conftest import architecture


def panels(planned, text):
    spec, plan = planned(text)
    [section] = picture(plan, spec).sections
    return section.panels


def test_the_grid_has_layers_across_and_modules_down(planned):
    _, plan = planned("share s per module rank 2")
    grid = picture(plan).grid
    assert grid.layers == (0, 1, 2)
    assert grid.rows == ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
    assert grid.groups == ("self_attn", "self_attn", "mlp")
    assert grid.places[:4] == ((0, 0), (1, 0), (2, 0), (0, 1))


def test_each_role_has_a_panel_with_its_own_pools(planned):
    a, b = panels(planned, "share s A per layer  B per module rank 2")
    assert (a.roles, len(a.patches), a.alone) == (("A",), 3, False)
    assert (b.roles, len(b.patches), b.alone) == (("B",), 9, True)
    assert a.patches[1].sites == (3, 4, 5)
    assert a.patches[1].label == "layer_1"
    assert a.patches[1].tensors[0].name == "s.layer_1.A"


def test_roles_that_are_shared_alike_are_drawn_once(planned):
    [panel] = panels(planned, "share s per layer rank 2 via SS")
    assert panel.roles == ("A", "B")
    assert [t.name for t in panel.patches[0].tensors] == ["s.layer_0.A", "s.layer_0.B"]
    assert len(panels(planned, "share s A per layer  B per module rank 2")) == 2


def test_where_a_share_is_not_is_told(planned):
    [a] = panels(planned, "share s where kind q_proj and layer > 0 per model rank 2")
    assert a.patches[0].label == "all"
    assert a.patches[0].sites == (3, 6)
    assert a.uncovered == (0, 1, 2, 4, 5, 7, 8)


def test_tensors_of_single_modules_are_told_at_the_module(planned):
    spec, plan = planned("share s per model rank 2 via KE(size = 16)")
    [section] = picture(plan, spec).sections
    assert [panel.roles for panel in section.panels] == [("A", "B")]
    assert [(role, tensor.shape) for role, tensor in section.own[2]] == [
        ("K_A", (1, 4)),
        ("K_B", (1, 6)),
    ]


def test_the_key_is_told_in_the_words_of_the_spec(planned):
    spec, plan = planned(
        "param r = 2 share s where layer > 0 per layer // 2, kind rank r share t A per kind B per module rank 1"
    )
    assert [section.key for section in picture(plan, spec).sections] == [
        "where layer > 0 per layer // 2, kind",
        "A per kind B per module",
    ]
    assert [section.key for section in picture(plan).sections] == ["", ""]


def test_two_towers_with_the_same_layers_have_rows_of_their_own(planned):
    towers = [architecture(2, prefix=f"{tower}.layers").sites for tower in ("vision", "text")]
    both = Architecture(
        name="both", family="x", layers=2, parameters=1000, sites=(*towers[0], *towers[1])
    )
    _, plan = planned("share s per module rank 2", both)
    grid = picture(plan).grid
    assert len(set(grid.places)) == len(grid.sites) == 12
    assert grid.rows[0] == "vision.layers.self_attn.q_proj"
    assert grid.rows[3] == "text.layers.self_attn.q_proj"


def test_a_layer_without_a_module_has_a_gap_there(planned):
    whole = architecture()
    some = whole.model_copy(
        update={"sites": tuple(s for s in whole.sites if s.layer != 1 or s.kind != "v_proj")}
    )
    spec, plan = planned("share s per kind rank 2", some)
    drawn = picture(plan, spec)
    assert (1, 1) not in drawn.grid.places
    assert text(drawn).splitlines()[3:6] == [
        "self_attn.q_proj  aaa",
        "self_attn.v_proj  b b",
        "     mlp.up_proj  ccc",
    ]


def test_a_picture_in_text(planned):
    spec, plan = planned(
        "share s per layer // 2 rank 2 via SS share t where kind v_proj A per model B per module rank 1"
    )
    assert (
        text(picture(plan, spec))
        == """\
s  per layer // 2  rank 2  via SS(slice = centre)
A, B: 2 pairs, 3-6 modules each
           layer  0
self_attn.q_proj  aab
self_attn.v_proj  aab
     mlp.up_proj  aab

t  where kind v_proj A per model B per module  rank 1
A: one tensor for 3 modules
           layer  0
self_attn.q_proj  ...
self_attn.v_proj  aaa
     mlp.up_proj  ...

t  where kind v_proj A per model B per module  rank 1
B: a tensor for each module
           layer  0
self_attn.q_proj  ...
self_attn.v_proj  abc
     mlp.up_proj  ..."""
    )


def test_more_pools_than_letters(planned):
    spec, plan = planned("share s per layer rank 2 via SS", architecture(70))
    drawn = text(picture(plan, spec))
    assert "70 pairs, 3 modules each; after 62 the letters begin again" in drawn
    assert (
        drawn.splitlines()[2]
        == "           layer  0         10        20        30        40        50        60"
    )
