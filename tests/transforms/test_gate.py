"""Gates at every place against a dense reference, token by token; their refusals, names and initial values."""

import pytest
import torch
from pydantic import ValidationError

from bishare_dsl.testing.checks import check_transform, pool_shapes
from bishare_dsl.transforms import Width, described, load_transform
from bishare_dsl.transforms.gate import Gate
from bishare_dsl.transforms.shipped.composed import COMPOSED, Step, compose
from bishare_dsl.transforms.shipped.experts import Experts

WIDTH = Width(16, 24)
RANK = 4


def step(transform, gate=None, as_=None, **options):
    return Step(transform=transform, options=options, gate=gate, name=as_)


GATES = [Gate(), Gate(top=2), Gate(of="A x"), Gate(top=2, of="A x")]
"""Every kind of gate of every input."""


def compositions(gate):
    core = step("Core", gate, count=3)
    yield compose(between=[core])
    yield compose(b=[step("Mix", gate, count_B=3)])
    yield compose(b=[step("Basis", gate, count=3)])
    yield compose(a=[step("KE", size=4)], b=[step("KE", size=4), step("Basis", gate, count=3)])
    # Two gates, one of several cores, and a step after it.
    cores = [step("Core", gate, "first", count=4, cores=2), step("Core", as_="second")]
    yield compose(b=[step("SS"), step("Mix", gate, count_B=3)], between=cores)
    if gate.of == "x":
        yield compose(a=[step("Mix", gate, count_A=3)])
        yield compose(a=[step("Loadings", vectors=7), step("Mix", gate, "router", count_A=3)])
        yield compose(a=[step("Mix", gate, count_A=3)], between=[core])


@pytest.mark.parametrize("gate", GATES, ids=Gate.written)
def test_it_is_its_dense_reference(gate):
    """The update and its gradients, alone and in generated code; a token does not depend on others."""
    for composed in compositions(gate):
        assert not composed.linear
        assert check_transform(composed, RANK, [WIDTH])


def values(transform, rank=RANK, width=WIDTH):
    [shapes] = pool_shapes(transform, rank, [width]).values()
    random = torch.Generator().manual_seed(1)
    return {role: torch.randn(shape, generator=random) for role, shape in shapes.items()}


def test_experts_are_a_case_of_it_bit_for_bit():
    experts = Experts(count=3)
    same = compose(b=[step("Mix", Gate(), count_B=3)])
    tensors = values(experts)
    x = torch.randn(2, 5, WIDTH.d_in, generator=torch.Generator().manual_seed(2))
    expected = experts.update(x, tensors, RANK, WIDTH)
    renamed = {"A": tensors["A"], "B": tensors["B"], "G_B": tensors["G"]}
    assert {role: t.shape for role, t in renamed.items()} == {
        role: t.shape for role, t in values(same).items()
    }
    assert torch.equal(same.update(x, renamed, RANK, WIDTH), expected)


def test_top_takes_the_largest_and_of_equals_the_first():
    logits = torch.tensor([[1.0, 3, 2, 0], [5, 5, 5, 5], [0, 1, 1, 1]])
    coefficients = Gate(top=2).coefficients(logits, torch.eye(4))
    larger, smaller = torch.tensor([1.0, 0]).softmax(0).tolist()
    expected = [[0, larger, smaller, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0]]
    torch.testing.assert_close(coefficients, torch.tensor(expected))


def test_the_router_is_a_private_tensor_in_the_place_of_the_coefficients():
    core = compose(between=[step("Core", Gate(), count=3)])
    assert core.roles == ("A", "B", "core", "G")
    assert compose(b=[step("Mix", Gate(), count_B=3)]).owned == ("G_B",)
    assert compose(a=[step("Mix", Gate(), count_A=3)]).owned == ("G_A",)
    named = compose(b=[step("Mix", Gate(), "router", count_B=3)])
    assert named.owned == ("router",)
    assert compose(between=[step("Core", Gate(), "x", count=3)]).owned == ("x_core", "x_G")
    of_rank = compose(between=[step("Core", Gate(of="A x"), count=3)])
    assert core.own(RANK, WIDTH)["G"] == (3, WIDTH.d_in, WIDTH.d_in)
    assert of_rank.own(RANK, WIDTH)["G"] == (3, RANK, RANK)


@pytest.mark.parametrize("gate", GATES, ids=Gate.written)
def test_one_tensor_starts_at_zero_and_it_is_no_router(gate):
    for composed in compositions(gate):
        zeros = [role for role in composed.roles if composed.start(role).init == "zeros"]
        assert len(zeros) == 1
        assert composed.zeros(frozenset(zeros)) == {*zeros}
        routers = [s.router for s in composed.steps if s.router is not None]
        assert composed.zeros(frozenset(routers)) == set()
        assert [composed.start(role).init for role in routers] == ["kaiming_uniform"] * len(routers)


@pytest.mark.parametrize(
    ("why", "places"),
    [
        ("Core takes no gate: it sums no matrices between A and B", {"between": ["Core"]}),
        ("Loadings takes no gate: it sums no matrices at B", {"b": ["Loadings"]}),
        ("KE takes no gate: it sums no matrices at A", {"a": ["KE"]}),
    ],
)
def test_a_step_without_coefficients_takes_no_gate(why, places):
    with pytest.raises(ValidationError, match=why):
        compose(
            **{place: [step(name, Gate()) for name in names] for place, names in places.items()}
        )


def test_a_gate_that_says_nothing_is_refused():
    with pytest.raises(ValidationError, match="a gate at A reads x"):
        compose(a=[step("Mix", Gate(of="A x"), count_A=3)])
    with pytest.raises(ValidationError, match="Mix takes no gate: it sums no matrices at A"):
        compose(a=[step("Mix", Gate(), count_B=3)])
    with pytest.raises(ValidationError, match="all of its 3 matrices are `gate softmax`"):
        compose(between=[step("Core", Gate(top=3), count=3)])
    with pytest.raises(ValidationError, match="with one matrix the coefficient is always 1"):
        compose(between=[step("Core", Gate(), count=1)])
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        Gate(top=1)
    with pytest.raises(ValidationError, match="two steps have a tensor `core`"):
        compose(between=[step("Core", Gate(), count=3), step("Core", Gate(), count=3)])


def test_it_is_loaded_from_its_options_and_written_as_in_a_spec():
    gate = Gate(top=2, of="A x")
    composed = compose(
        b=[step("Mix", Gate(), count_B=3)], between=[step("Core", gate, "c", count=4)]
    )
    again = load_transform(COMPOSED, composed.options())
    assert (again, hash(again)) == (composed, hash(composed))
    softmax = compose(b=composed.B, between=[step("Core", Gate(), "c", count=4)])
    assert composed != softmax
    assert described.via(COMPOSED, composed.options()) == (
        "between Core(count = 4) gate top 2 of A x as c, B Mix(count_A = 1, count_B = 3) gate softmax"
    )


def test_auto_keeps_the_gate():
    composed = compose([step("KE")], [step("Mix", Gate(), count_B=3)])
    assert composed.with_option("A.0.size", 8).B == composed.B
    gated = compose(b=[step("KE"), step("Mix", Gate(), count_B=3)])
    assert gated.with_option("B.0.size", 8).B[1].gate == Gate()
