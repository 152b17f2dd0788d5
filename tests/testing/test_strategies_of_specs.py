from hypothesis import given
from hypothesis import strategies as st

from bishare_dsl.diagnostics import PlanError, SpecError
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.testing.any_specs import specs
from bishare_dsl.testing.fitting_specs import fitting_specs
from tests.support.architectures import architectures


@st.composite
def fitting(draw):
    architecture = draw(architectures())
    return draw(fitting_specs(architecture)), architecture


@given(fitting())
def test_a_meaningful_spec_has_a_plan(drawn):
    spec, architecture = drawn
    plan, problems = build_plan(spec, architecture)
    assert plan.terms or plan.trained
    assert all(problem.severity != "error" for problem in problems)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert len(plan.tensor) == len(plan.tensors)
    used = {name for term in plan.terms for name in term.tensors.values()}
    assert used | {trained.tensor for trained in plan.trained} == set(plan.tensor)


@given(fitting(), specs())
def test_any_share_beside_a_sound_one_has_a_plan_or_problems(drawn, other):
    """Most random specs are rejected at once; partly valid specs get further."""
    spec, architecture = drawn
    mixed = spec.model_copy(
        update={"shares": (*spec.shares, *other.shares), "params": spec.params + other.params}
    )
    try:
        build_plan(mixed, architecture)
    except (SpecError, PlanError) as error:
        str(error)
