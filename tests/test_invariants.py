"""The invariants of the design, as properties of any spec on any model."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bishare_dsl.language import parse_spec, spec_text
from bishare_dsl.models.inspect import inspect_model, linear_maps
from bishare_dsl.testing.fitting_specs import fitting_specs
from bishare_dsl.testing.specs import check_spec
from tests.support import checks
from tests.support.architectures import architectures
from tests.support.small_models import small_models

# An example compiles and runs a model or two.
FEW = settings(max_examples=max(1, settings().max_examples // 8))
SOME = settings(max_examples=max(1, settings().max_examples // 4))


@st.composite
def compilable(draw, **families):
    """A spec and a model that it fits."""
    model = draw(small_models(**families))
    return draw(fitting_specs(inspect_model(model))), model


@settings(max_examples=2 * settings().max_examples)
@given(architectures().flatmap(fitting_specs))
def test_text_says_the_same(spec):
    assert parse_spec(spec_text(spec)) == spec


@SOME
@given(compilable())
def test_every_invariant(drawn):
    checks.check_spec(*drawn)


@FEW
@given(compilable(families=["llama", "qwen3"]))
def test_users_can_check_them(drawn):
    """`bishare_dsl.testing.specs` accepts what the project's own checks accept."""
    spec, model = drawn
    assume(all(weight.replacement() is None for weight in linear_maps(model).values()))
    check_spec(spec, model)


@FEW
@given(compilable(families=["llama", "qwen3", "gpt2"]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_they_are_in_shorter_types(dtype, drawn):
    checks.check_against_reference(*drawn, dtype=dtype)


def test_all_of_it_at_once():
    """`check_spec`, as a user calls it: a spec with every transform on a model of three layers."""
    from bishare_dsl.testing.models import tiny_model

    spec = parse_spec(
        "spec all param r = 2 let mlp = up_proj, down_proj target q_proj, v_proj, mlp alpha 3 "
        "share local per module rank match kind { q_proj: 1; else: r } "
        "share intra where layer in -2..-1 per layer rank 4 via KE(size = 6, shared_rank = 2) "
        "share inter per model rank 3 via GT(size = 5, gate_rank = 2) scale alpha / sqrt(rank) "
        "share rows where mlp per parent rank 2 via KE(size = 16, rowwise = true) "
        "share slices per layer % 2 rank 2 via SS(slice = trailing) init A zeros, B normal "
        "share kinds where not mlp per kind rank 1 share none per model rank 0 via SS"
    )
    checks.check_spec(spec, tiny_model("llama", num_hidden_layers=3))
