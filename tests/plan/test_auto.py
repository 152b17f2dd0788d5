"""An option that is left to the model takes the largest number at which the rank of the spec is reached."""

from functools import cache

import pytest

from bishare_dsl.compiler import make_plan, read_spec
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.models import preset
from bishare_dsl.models.presets import PRESETS
from bishare_dsl.resources import shipped_specs
from bishare_dsl.testing.models import tiny_model
from tests.methods.test_every_method import ONE_OF_EACH
from tests.support.parts import quick


@cache
def short_models():
    """The presets, one of those whose layers are alike, cut to nine layers and two experts."""
    found = {}
    for name in PRESETS:
        model = preset(name)
        sites = [
            site
            for site in model.sites
            if (site.layer or 0) < 9 and (site.expert is None or site.expert < 2)
        ]
        widths = tuple((site.kind, site.d_in, site.d_out) for site in sites)
        found[widths] = model.model_copy(update={"sites": tuple(sites), "layers": 9})
    return list(found.values())


NOT_EVERYWHERE = {
    # Experts have no output to scale and no router of their own, and IA3 needs keys and values that are not fused.
    "dora": ["BS323"],
    "hydralora": ["BS327"],
    "ia3": ["BS323", "BS301"],
}


@pytest.mark.parametrize("name", quick(shipped_specs(), ONE_OF_EACH))
def test_a_spec_that_ships_fits_every_model(name):
    spec, _ = read_spec(name)
    for model in short_models():
        try:
            made = make_plan(spec, model)
        except BishareError as error:  # Each of these is refused with a remedy.
            experts = any(site.expert is not None for site in model.sites)
            found = {problem.code for problem in error.problems if problem.help}
            known = name in NOT_EVERYWHERE and found & {*NOT_EVERYWHERE[name]}
            if not (known and (experts or "k_proj" not in model.kinds)):
                raise
            continue
        assert made.problems == (), (model.name, made.problems)


def sizes(spec, model, params=None):
    plan = make_plan(spec, model, params).plan
    return {term.share: term.options["size"] for term in plan.terms if "size" in term.options}


@pytest.mark.parametrize(
    ("via", "found"),
    [("KE(size = auto)", 256), ("KE(size = auto, shared_rank = 1)", 1), ("KE(size = 4)", 4)],
)
def test_a_rank_that_varies_is_reached_wherever_it_can_be(via, found):
    """Widths are 20 to 48. Four divides them all, and would leave a rank of 4 where shared factors have all of it."""
    text = f"spec s\ntarget attention_inputs, mlp_downs\nshare a per layer rank 8 + 16 * layer via {via}\n"
    assert {*sizes(text, tiny_model("llama")).values()} == {found}


def test_a_number_that_shares_less_is_no_advice_for_a_rank_out_of_reach():
    text = "spec s\ntarget attention_inputs\nshare a per model rank 16 via KE(size = {}, shared_rank = 1)\n"
    (problem,) = make_plan(text.format(192), "smollm2-135m").problems
    assert problem.code == "BS311"
    assert "size" not in problem.help, "with more rank, less of the adapter is shared"
    assert make_plan(text.format(12), "smollm2-135m").problems == ()
    assert make_plan(text.format("auto"), "smollm2-135m").problems == ()


@pytest.mark.parametrize(
    ("model", "size"),
    [("llama-7b", 1024), ("llama-3-8b", 1024), ("llama-1-13b", 1024), ("smollm2-135m", 1536 // 4)],
)
def test_gates_share_factors_of_a_quarter_of_the_widest_module(model, size):
    """The paper's 1024 stays on its models: the widest modules there have 11,008 columns or more."""
    assert {*sizes(read_spec("bishare_gt")[0], model).values()} == {size}


def test_an_option_that_no_model_can_give_is_an_error():
    text = "spec s\ntarget q_proj\nshare a per module rank 4 via Experts(count = auto)\n"
    with pytest.raises(BishareError, match="`count` is a whole number"):
        make_plan(text, "llama-7b")
