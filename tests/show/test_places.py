from bishare_dsl.show.places import Places
from tests.show.conftest import architecture, experts


def test_experts_parents_and_towers_are_named_where_they_tell_modules_apart(planned):
    _, plan = planned("share s per module rank 2", experts(2, 4), target="q_proj, up_proj")
    paths = [site.path for site in plan.sites if site.expert in (0, 1) and site.layer == 0]
    assert Places(plan).said(paths, Places(plan).targets) == "up_proj of experts 0-1 of layer 0"
    kinds = {"self_attn.c_proj": (64, 64), "mlp.c_proj": (64, 64)}
    _, plan = planned("share s per module rank 2", architecture(2, kinds), target="c_proj")
    assert Places(plan).said(["model.layers.0.mlp.c_proj"], {}) == "mlp.c_proj of layer 0"
    vision = architecture(2, {"self_attn.q_proj": (64, 64)}, "vision_tower.layers")
    _, plan = planned("share s per module rank 2", vision, target="q_proj")
    assert (
        Places(plan).said([site.path for site in plan.sites], {}) == "vision q_proj of layers 0-1"
    )
    assert Places(plan).said([site.path for site in plan.sites], Places(plan).targets) == ""
