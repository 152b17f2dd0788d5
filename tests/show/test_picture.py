from bishare_dsl.show.picture import picture
from bishare_dsl.show.rows import held


def panels(planned, text):
    spec, plan = planned(text)
    [section] = picture(plan, spec)
    return section.panels


def test_the_grid_has_layers_across_and_modules_down(planned):
    _, plan = planned("share s per module rank 2")
    grid = picture(plan)[0].panels[0].grid
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


def test_private_tensors_have_a_panel_and_a_count(planned):
    shared, own = panels(planned, "share s per model rank 2 via KE(size = 16)")
    assert (shared.roles, shared.alone, own.roles, own.alone) == (
        *(("A", "B"), False),
        *(("K_A", "K_B"), True),
    )
    assert [tensor.shape for tensor in own.patches[2].tensors] == [(1, 4), (1, 6)]
    assert own.patches[2].sites == (2,)
    assert (shared.parameters, own.parameters) == (2 * 2 * 16, 3 * (4 + 4 + 4 + 1 + 4 + 6))


def test_the_statement_of_a_share_names_the_values_of_its_params(planned):
    spec, plan = planned(
        "param r = 2 scale 3 share s where layer > 0 per layer // 2, kind rank 2 * r freeze A gain rank init 0.5 "
        "share t A per kind B per module rank 1 dropout 0.1"
    )
    assert [section.statement for section in picture(plan, spec)] == [
        "where layer > 0 per layer // 2, kind rank 2 * r freeze A gain rank init 0.5; r = 2",
        "A per kind B per module rank 1 dropout 0.1",
    ]
    assert [section.statement for section in picture(plan)] == [
        "rank 4; scale 3; in layers 1-2 (0 is left out) alone",
        "rank 1; scale 3; q_proj of layers 0-2 share A, for example; drops 10% of its inputs",
    ]


def test_what_is_shared_what_is_private_and_what_is_frozen(planned):
    _, plan = planned(
        "share s A per layer  B per module  rank 2 freeze A share t per model rank 1 via SS"
    )
    assert held(plan.tensors, plan.users) == (64 + 96, 3 * 2 * (64 + 16 + 96), 3 * 2 * 64)


def test_a_magnitude_is_drawn_as_it_is_written(planned):
    spec, plan = planned("share l per module rank 2 magnitude per kind plain")
    _, magnitude = picture(plan, spec)
    assert magnitude.statement == "per kind plain"
    [panel] = magnitude.panels
    assert panel.roles == ("mu",)
    assert panel.parameters == 64 + 16 + 96
    assert picture(plan)[1].statement.startswith("via magnitude(plain = true)")  # without the spec
