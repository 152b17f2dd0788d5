import pytest

from bishare_dsl.api import plan_spec
from bishare_dsl.language import parse_spec
from bishare_dsl.models.site import Architecture, Site

WIDTHS = {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (64, 16), "mlp.up_proj": (64, 96)}


def architecture(layers=3, kinds=WIDTHS, prefix="model.layers", name="small"):
    sites = (
        Site.at(f"{prefix}.{layer}.{path}", *widths)
        for layer in range(layers)
        for path, widths in kinds.items()
    )
    return Architecture(
        name=name, family="llama", layers=layers, parameters=10_000, sites=tuple(sites)
    )


def experts(layers, count):
    """Layers of two projections, and of experts with three each."""
    kinds = {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (64, 64)}
    for expert in range(count):
        for kind in ("gate_proj", "up_proj", "down_proj"):
            kinds[f"mlp.experts.{expert}.{kind}"] = (64, 64)
    return architecture(layers, kinds, name="experts")


@pytest.fixture
def planned():
    """A spec of these statements, and its plan for a small model or another."""

    def plan(text, model=None, target="q_proj, v_proj, up_proj"):
        spec = parse_spec(f"spec small target {target} {text}")
        return spec, plan_spec(spec, model or architecture())

    return plan
