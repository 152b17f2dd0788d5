import random
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bishare_dsl.diagnostics import PlanError, SpecError
from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.spec import RankMatch, Ref
from tests.support.architectures import architectures
from tests.support.families import TINY_FAMILIES, TINY_MIXTURES, TINY_TOWERS
from tests.support.plans import meaningful_specs, pools, small_models
from tests.support.quantised import Int8Linear
from tests.support.specs import specs


@st.composite
def fitting(draw):
    architecture = draw(architectures())
    return draw(meaningful_specs(architecture)), architecture


@given(fitting())
def test_a_meaningful_spec_has_a_plan(drawn):
    spec, architecture = drawn
    plan, warnings = build_plan(spec, architecture)
    assert plan.terms or plan.trained
    assert all(problem.severity == "warning" for problem in warnings)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert len(plan.tensor) == len(plan.tensors)
    used = {name for term in plan.terms for name in term.tensors.values()}
    assert used | {trained.tensor for trained in plan.trained} == set(plan.tensor)


@given(fitting(), st.randoms(use_true_random=False))
def test_meaning_does_not_depend_on_order(drawn, rng: random.Random):
    spec, architecture = drawn
    shuffled = list(spec.shares)
    rng.shuffle(shuffled)
    first, _ = build_plan(spec, architecture)
    other, _ = build_plan(spec.model_copy(update={"shares": tuple(shuffled)}), architecture)
    assert set(other.tensors) == set(first.tensors)
    assert set(map(str, other.terms)) == set(map(str, first.terms))
    assert other.trainable == first.trainable


@given(specs(), architectures())
def test_any_spec_has_a_plan_or_problems(spec, architecture):
    try:
        build_plan(spec, architecture)
    except (SpecError, PlanError) as error:
        str(error)


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


WANTED = {
    **{
        name: lambda plan, spec, name=name: any(t.transform == name for t in plan.terms)
        for name in ("Identity", "SS", "GT", "KE", "VectorBank", "Rotation", "BlockDiagonal", "Basis", "Core", "Mix", "Shards", "Loadings", "Experts")
    },
    "rowwise": lambda plan, spec: any(t.options.get("rowwise") for t in plan.terms),
    "a_b": lambda plan, spec: any((t.options.get("shared_rank") or 0) > 1 for t in plan.terms),
    "gate rank": lambda plan, spec: any(t.options.get("gate_rank", 1) > 1 for t in plan.terms),
    "rank match": lambda plan, spec: any(isinstance(s.rank, RankMatch) for s in spec.shares),
    "a dropped share": lambda plan, spec: len(plan.shares) < len(spec.shares),
    "except": lambda plan, spec: any(s.where and s.where.exclude for s in spec.shares),
    "let and param": lambda plan, spec: spec.lets and spec.params,
    "two owners": lambda plan, spec: len({t.owner for t in plan.tensors}) > 1,
    "two scales": lambda plan, spec: len({t.scale for t in plan.terms}) > 1,
    "A at zero": lambda plan, spec: any(t.init == "zeros" and t.name[-1] == "A" for t in plan.tensors),
    "a key for each factor": lambda plan, spec: any("A" in s.keys for s in spec.shares),
    "frozen": lambda plan, spec: plan.frozen,
    "gain rank": lambda plan, spec: any("gain_rank" in t.tensors for t in plan.terms),
    "gain out": lambda plan, spec: any("gain_out" in t.tensors for t in plan.terms),
    "frozen random factors": lambda plan, spec: any({"A", "B"} <= set(s.freeze) and s.gain.out == 0 for s in spec.shares),
    "a start that is not the base": lambda plan, spec: any(s.nonzero_start for s in spec.shares),
    "heads and embeddings": lambda plan, spec: any(site.layer is None for site in plan.sites),
    "a tied one": lambda plan, spec: any(site.tied for site in plan.sites),
    "train": lambda plan, spec: spec.train and plan.trained,
    "train alone": lambda plan, spec: not spec.shares,
    "norms": lambda plan, spec: spec.train and Ref(ref="norms") in spec.train.include,
    "except in train": lambda plan, spec: spec.train and spec.train.exclude,
    "per expert": lambda plan, spec: any(Ref(ref="expert") in key for s in spec.shares for key in s.placed_keys.values()),
    "experts together": lambda plan, spec: '"ref":"expert"},"right":2' in spec.model_dump_json(),
    "per tower": lambda plan, spec: any(Ref(ref="tower") in key for s in spec.shares for key in s.placed_keys.values()),
    "where expert": lambda plan, spec: any(s.where and '"expert"' in s.where.model_dump_json() for s in spec.shares),
    "a crop": lambda plan, spec: any(
        t.transform == "KE" and plan.sites[0].d_in % t.options["size"] for t in plan.terms
    ),
}  # fmt: skip


class _Seen(Exception):
    """Raised when all features have been seen."""


@pytest.mark.long
def test_what_is_drawn_covers_the_language():
    seen = Counter()

    @settings(deadline=None, max_examples=2000, derandomize=True, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck), database=None)  # fmt: skip
    @given(fitting())
    def draw(drawn):
        plan, _ = build_plan(*drawn)
        seen.update(name for name, wanted in WANTED.items() if wanted(plan, drawn[0]))
        if set(seen) == set(WANTED):
            raise _Seen

    with suppress(_Seen):
        draw()
    assert set(seen) == set(WANTED)


@pytest.mark.long
def test_drawn_models_cover_the_families():
    seen, quantised, tied = set(), set(), set()

    @settings(max_examples=150, deadline=None, derandomize=True, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck), database=None)  # fmt: skip
    @given(small_models())
    def draw(model):
        seen.add(model.config.model_type)
        assert not model.training
        architecture = inspect_model(model)
        quantised.add(any(isinstance(module, Int8Linear) for module in model.modules()))
        tied.add(any(site.tied for site in architecture.outside))

    draw()
    families = [*TINY_FAMILIES.values(), *TINY_MIXTURES.values(), *TINY_TOWERS.values()]
    assert len(seen) >= len({family.model_type for family in families}) - 6
    assert seen & set(TINY_MIXTURES)
    assert quantised == tied == {True, False}


def test_a_drawn_model_is_a_copy():
    models = []

    @settings(max_examples=3, deadline=None)
    @given(small_models(families=["llama"]))
    def draw(model):
        for parameter in model.parameters():
            assert not (parameter == 7).all()
            parameter.data.fill_(7)
        models.append(model)

    draw()


@given(pools())
def test_pools_have_widths(widths):
    assert all(width.d_in > 0 < width.d_out for width in widths)
