"""Every transform, through the protocol: shapes, zero start, rank, tracing, and the paper's equation."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bishare_dsl.testing.checks import check_transform
from bishare_dsl.transforms import (
    Transform,
    Width,
    effective_pair,
    effective_pairs,
    register,
    stack_or_share,
    transform_kind,
    transform_names,
)
from bishare_dsl.transforms.basis import Basis
from bishare_dsl.transforms.block_diagonal import BlockDiagonal
from bishare_dsl.transforms.core import Core
from bishare_dsl.transforms.experts import Experts
from bishare_dsl.transforms.gate_transformation import GateTransformation
from bishare_dsl.transforms.grid import Grid
from bishare_dsl.transforms.hadamard import Hadamard
from bishare_dsl.transforms.identity import Identity
from bishare_dsl.transforms.kronecker_extension import KroneckerExtension
from bishare_dsl.transforms.loadings import Loadings
from bishare_dsl.transforms.magnitude import LONGEST, bounded_ratio
from bishare_dsl.transforms.miss import MiSS
from bishare_dsl.transforms.mix import Mix
from bishare_dsl.transforms.registry import BUILT_IN
from bishare_dsl.transforms.rotation import Rotation
from bishare_dsl.transforms.shards import Shards
from bishare_dsl.transforms.slice_sharing import SliceSharing
from bishare_dsl.transforms.vector_bank import VectorBank
from tests.support.plans import pools
from tests.support.references import REFERENCES
from tests.support.toeplitz import Toeplitz

# Each example checks every site of a pool, and with every set of its tensors at zero.
SOME = settings(max_examples=max(1, settings().max_examples // 2))
SIZES = st.integers(1, 26)
STARTS = st.sampled_from(["kaiming_uniform", "kaiming_normal", "ones"])


COUNTS = st.integers(1, 5)


def multiples(widths, of):
    return [Width(width.d_in * of, width.d_out * of) for width in widths]


def some(kind, **options):
    return st.fixed_dictionaries(options).map(lambda found: kind(**found))


TRANSFORMS = {
    "Identity": some(Identity),
    "SS": some(SliceSharing, slice=st.sampled_from(["centre", "leading", "trailing"])),
    "GT": some(GateTransformation, size=SIZES, gates=STARTS, gate_rank=st.integers(1, 6)),
    "KE": some(KroneckerExtension, size=SIZES, kernel=STARTS, rowwise=st.booleans())
    | some(KroneckerExtension, size=SIZES, shared_rank=st.integers(1, 3)),
    "Rotation": some(
        Rotation, chunks_A=COUNTS, chunks_B=COUNTS, stride=st.none() | st.integers(0, 7)
    ),
    "BlockDiagonal": some(BlockDiagonal, blocks=COUNTS, cut=st.sampled_from(["both", "in", "out"])),
    "VectorBank": some(VectorBank, vectors=st.just(7), length=COUNTS, top_k=st.integers(2, 6)),
    "Basis": some(Basis, count=COUNTS),
    "Mix": st.sampled_from([(1, 2), (1, 4), (3, 1), (2, 3)]).map(
        lambda counts: Mix(count_A=counts[0], count_B=counts[1])
    ),
    "Core": some(Core, cores=st.integers(1, 3), count=st.integers(0, 3)),
    "MiSS": some(MiSS),
    "Hadamard": some(Hadamard),
    "Grid": some(Grid, blocks=st.integers(1, 3)),
    "Shards": some(Shards, rows=st.integers(1, 6), shards=COUNTS),
    "Loadings": some(Loadings, vectors=COUNTS),
    "Experts": some(Experts, count=st.integers(2, 5)),
    "Toeplitz": some(Toeplitz),
}
ONE_WIDTH = {"Identity", "Rotation", "BlockDiagonal", "Grid", "Shards", "Experts"}
"""Transforms whose pools have one width on each side."""


@pytest.mark.parametrize("name", TRANSFORMS)
@SOME
@given(st.data(), pools(), st.integers(1, 4))
def test_it_is_its_dense_reference(name, data, widths, rank):
    """Shapes, zero starts, rank, tracing, products and gradients; on every site of a pool."""
    transform = data.draw(TRANSFORMS[name])
    widths = widths[:1] if name in ONE_WIDTH else widths
    of = {"blocks", "length", "shards"} & {*type(transform).model_fields}
    for option in of:
        widths = multiples(widths, getattr(transform, option))
    if name == "Rotation":
        assume(transform.chunks_A <= widths[0].d_in and transform.chunks_B <= widths[0].d_out)
    if name == "Grid":
        rank *= transform.blocks
    rank *= getattr(transform, "shared_rank", None) or 1
    expected = name != "Shards" or transform.site_rows <= rank
    assert check_transform(transform, rank, widths) == expected


def test_each_of_ours_is_here():
    assert {*TRANSFORMS} - {"Toeplitz"} == {*BUILT_IN} - {"Magnitude"}
    assert {*BUILT_IN} <= REFERENCES.keys()


@pytest.mark.parametrize("own", [(), ("A",), ("B", "K_A"), ("A", "B", "K_A", "K_B")])
def test_many_pairs_are_made_at_once_of_what_each_has_and_what_all_share(own):
    transform, width, rank, some = KroneckerExtension(size=5), Width(12, 17), 4, torch.Generator()
    shapes = {role: transform.shared_shape(role, rank, width.sides(role)) for role in "AB"}
    shapes |= {role: (t.rows, t.columns) for role, t in transform.own(rank, width).items()}
    assert set(own) <= set(shapes)
    each: list[dict[str, torch.Tensor]] = [{}, {}, {}]
    for role, shape in shapes.items():
        drawn = [torch.randn(shape, generator=some) for _ in each]
        for number, tensors in enumerate(each):
            tensors[role] = drawn[number if role in own else 0]
    given = {role: stack_or_share([tensors[role] for tensors in each]) for role in shapes}
    assert {role for role, tensor in given.items() if tensor.dim() == 3} == set(own)
    pairs = effective_pairs(transform, given, 3, rank, width, 2.0)
    for number, tensors in enumerate(each):
        alone = effective_pair(transform, tensors, rank, width, 2.0)
        for made, wanted in zip(pairs, alone, strict=True):
            torch.testing.assert_close(made[number], wanted)
    if not own:
        assert all(made.stride(0) == 0 for made in pairs)


class Halved(NamedTuple):
    """A factor of a package's own, which multiplies by half of what it says to be."""

    tensor: torch.Tensor

    def down(self, x):
        return x @ self.tensor.mT / 2

    def add_up(self, y, z, scale=1.0):
        return y.add_(z @ self.tensor, alpha=scale)

    def dense(self):
        return self.tensor


def test_a_factor_that_multiplies_otherwise_than_it_is_fails_the_check():
    class Wrong(Identity):
        def factor(self, role, tensors, rank, side):
            return Halved(tensors[role])

    with pytest.raises(AssertionError, match=r"`down` of the effective A at .* 1 tokens differs"):
        check_transform(Wrong(), 2, [Width(4, 6)])


@pytest.mark.parametrize(
    ("window", "columns"),
    [("leading", [0, 1, 2]), ("centre", [2, 3, 4]), ("trailing", [4, 5, 6])],
)
def test_windows(window, columns):
    shared = {"A": torch.arange(7.0)[None], "B": torch.arange(4.0)[None]}
    down, up = SliceSharing(slice=window).factors(shared, 1, Width(3, 4))
    assert down.tolist() == [columns]
    assert up.tolist() == [[0, 1, 2, 3]]


def test_a_row_that_the_terms_cancel_is_scaled_by_a_bounded_ratio():
    """Its rest is rounding, which may also be negative; without a change the ratio is 1."""
    before, after = torch.tensor([4.0, 4, 4, 4, 0]), torch.tensor([1.0, 0, 1e-12, -1e-9, 0])
    assert bounded_ratio(before, after).tolist() == pytest.approx([2, *3 * [LONGEST], 1])


def test_shapes_of_the_paper():
    """The q_proj and down_proj of a Llama-7B, in the orientation that is stored."""
    q, down = Width(4096, 4096), Width(11008, 4096)
    inputs = [width.d_in for width in (q, down)]
    assert SliceSharing().shared_shape("A", 32, inputs) == (32, 11008)
    assert GateTransformation().shared_shape("A", 16, inputs) == (16, 1024)
    assert KroneckerExtension().shared_shape("A", 16, inputs) == (16, 256)
    assert KroneckerExtension(shared_rank=1).shared_shape("A", 16, inputs) == (1, 256)

    def own(transform, width):
        return {role: (t.rows, t.columns) for role, t in transform.own(16, width).items()}

    assert own(GateTransformation(), down) == {
        "G_id": (1, 11008),
        "G_iu": (1, 1024),
        "G_od": (1, 1024),
        "G_ou": (1, 4096),
    }
    assert own(KroneckerExtension(), down) == {"K_A": (1, 43), "K_B": (1, 16)}
    assert own(KroneckerExtension(shared_rank=1), down) == {"K_A": (16, 43), "K_B": (16, 16)}
    assert own(KroneckerExtension(rowwise=True), down) == {"K_A": (16, 43), "K_B": (16, 16)}


def test_fan_in_is_of_the_papers_orientation():
    """kaiming_*_ draws by the columns of the paper's matrix; what is stored transposed has it in rows."""
    gates = GateTransformation(size=10, gate_rank=2).own(4, Width(6, 8))
    assert {role: t.fan_in for role, t in gates.items()} == {
        "G_id": 6,  # (g, d_in)
        "G_iu": 2,  # (m, g)
        "G_od": 10,  # (g, n)
        "G_ou": 2,  # (d_out, g)
    }
    kernels = KroneckerExtension(size=2).own(4, Width(6, 8))
    assert {role: t.fan_in for role, t in kernels.items()} == {"K_A": 3, "K_B": 1}


@pytest.mark.parametrize(
    ("transform", "rank", "reach"),
    [
        (SliceSharing(), 4, 4),
        (SliceSharing(), 9, 6),  # the width of the input
        (GateTransformation(), 16, 1),
        (GateTransformation(gate_rank=3), 16, 3),
        (GateTransformation(gate_rank=3), 2, 2),
        (KroneckerExtension(size=2), 4, 2),  # A_s (4, 2) has rank 2
        (KroneckerExtension(size=2, shared_rank=1), 4, 3),  # K_A (4, 3)
        (KroneckerExtension(size=2, shared_rank=2), 4, 4),
        (KroneckerExtension(size=2, rowwise=True), 4, 4),
    ],
)
def test_reach(transform, rank, reach):
    assert transform.reach(rank, Width(6, 8)) == reach


def test_gates_of_rank_one_are_told():
    (problem,) = GateTransformation().review(8, [Width(6, 8)])
    assert (problem.code, problem.loc) == ("BS350", ("via",))
    assert "rank 1 at most" in problem.message
    assert "8" in problem.message
    assert not [*GateTransformation(gate_rank=8).review(8, [Width(6, 8)])]


def test_a_crop_is_told_with_the_sizes_that_divide():
    (problem,) = KroneckerExtension(size=250).review(8, [Width(4096, 11008), Width(4096, 4096)])
    assert (problem.code, problem.loc) == ("BS351", ("via", "options", "size"))
    assert problem.message.startswith("size 250 does not divide 4096, 11008")
    assert "256" in problem.help
    assert not [*KroneckerExtension(size=256).review(8, [Width(4096, 11008)])]


def test_identity_needs_equal_widths():
    with pytest.raises(ValueError, match=r"different widths \(4, 6\)"):
        Identity().shared_shape("A", 2, [6, 4, 6])


def test_a_rank_that_the_kernel_cannot_give():
    with pytest.raises(ValueError, match="not a multiple of shared_rank = 3"):
        KroneckerExtension(shared_rank=3).check_rank(4)
    KroneckerExtension(shared_rank=3).check_rank(6)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SliceSharing, {"slice": "middle"}),
        (SliceSharing, {"window": "centre"}),  # the option is called slice
        (GateTransformation, {"size": 0}),
        (GateTransformation, {"gates": "zeros"}),
        (GateTransformation, {"gate_rank": 1.5}),
        (KroneckerExtension, {"size": -1}),
        (KroneckerExtension, {"kernel": "normal"}),
        (KroneckerExtension, {"shared_rank": 2, "rowwise": True}),
        (Identity, {"size": 1}),
    ],
)
def test_options_are_checked(kind, options):
    with pytest.raises(ValidationError):
        kind.model_validate(options)


def test_registry(monkeypatch):
    from bishare_dsl.transforms import registry

    monkeypatch.setattr(registry, "_REGISTERED", {})
    assert set(transform_names()) >= {"Identity", "SS", "GT", "KE"}

    class Mine(Transform):
        name = "Mine"
        title = "mine"

    assert register(Mine) is Mine
    assert register(Mine) is Mine  # Again is not a conflict.
    assert transform_kind("Mine") is Mine

    class Other(Mine):
        name = "KE"

    with pytest.raises(ValueError, match="'KE' is taken"):
        register(Other)
