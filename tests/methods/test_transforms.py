"""The transforms of the literature, through the protocol: shapes, rank, tracing, gradients, their equations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import tests.support.references  # noqa: F401 - registers what `check_transform` compares with
from bishare_dsl.testing.checks import check_transform
from bishare_dsl.transforms import Width
from bishare_dsl.transforms.basis import Basis
from bishare_dsl.transforms.block_diagonal import BlockDiagonal
from bishare_dsl.transforms.core import Core
from bishare_dsl.transforms.experts import Experts
from bishare_dsl.transforms.grid import Grid
from bishare_dsl.transforms.hadamard import Hadamard
from bishare_dsl.transforms.loadings import Loadings
from bishare_dsl.transforms.miss import MiSS
from bishare_dsl.transforms.mix import Mix
from bishare_dsl.transforms.rotation import Rotation
from bishare_dsl.transforms.shards import Shards
from bishare_dsl.transforms.vector_bank import VectorBank
from tests.support.plans import pools

# Each example checks every site of a pool, and with every set of its tensors at zero.
SOME = settings(max_examples=max(1, settings().max_examples // 4))
RANKS = st.integers(1, 6)
COUNTS = st.integers(1, 5)


def multiples(widths, of):
    return [Width(width.d_in * of, width.d_out * of) for width in widths]


@SOME
@given(pools(), RANKS, COUNTS, COUNTS, st.none() | st.integers(0, 7))
def test_rotation(widths, rank, chunks_a, chunks_b, stride):
    chunks = {"chunks_A": min(chunks_a, widths[0].d_in), "chunks_B": min(chunks_b, widths[0].d_out)}
    rotation = Rotation(**chunks, stride=stride)
    assert check_transform(rotation, rank, widths[:1])


@SOME
@given(pools(), RANKS, COUNTS, st.sampled_from(["both", "in", "out"]))
def test_block_diagonal(widths, rank, blocks, cut):
    transform = BlockDiagonal(blocks=blocks, cut=cut)
    assert check_transform(transform, rank, multiples(widths[:1], blocks))


@SOME
@given(pools(), st.integers(1, 3), COUNTS, st.integers(2, 6), st.integers(2, 6))
def test_vector_bank(widths, rank, length, vectors, top_k):
    bank = VectorBank(vectors=max(vectors, top_k), length=length, top_k=top_k)
    assert check_transform(bank, rank, multiples(widths, length))


@SOME
@given(pools(), RANKS, COUNTS)
def test_basis(widths, rank, count):
    assert check_transform(Basis(count=count), rank, widths)


@SOME
@given(pools(), RANKS, st.sampled_from([(1, 2), (1, 4), (3, 1), (2, 3)]))
def test_mix(widths, rank, counts):
    count_a, count_b = counts
    assert check_transform(Mix(count_A=count_a, count_B=count_b), rank, widths)


@SOME
@given(pools(), RANKS, st.integers(1, 3), st.integers(0, 3))
def test_core(widths, rank, cores, count):
    assert check_transform(Core(cores=cores, count=count), rank, widths)


@SOME
@given(pools(), RANKS)
def test_miss(widths, rank):
    assert check_transform(MiSS(), rank, widths)


@SOME
@given(pools(), st.integers(1, 4))
def test_hadamard(widths, rank):
    assert check_transform(Hadamard(), rank, widths)


@SOME
@given(pools(), st.integers(1, 3), st.integers(1, 3))
def test_grid(widths, rank, blocks):
    assert check_transform(Grid(blocks=blocks), rank * blocks, multiples(widths[:1], blocks))


@SOME
@given(pools(), RANKS, st.integers(1, 6), COUNTS)
def test_shards(widths, rank, rows, shards):
    transform = Shards(rows=rows, shards=shards)
    assert check_transform(transform, rank, multiples(widths[:1], shards)) == (rows <= rank)


@SOME
@given(pools(), RANKS, COUNTS)
def test_loadings(widths, rank, vectors):
    assert check_transform(Loadings(vectors=vectors), rank, widths)


@SOME
@given(pools(), RANKS, st.integers(2, 5))
def test_experts(widths, rank, count):
    assert check_transform(Experts(count=count), rank, widths[:1])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (VectorBank, {"vectors": 1, "top_k": 2}),
        # A softmax over one is 1, whatever the logit: nothing would train it.
        (VectorBank, {"top_k": 1}),
        (Experts, {"count": 1}),
        (Rotation, {"chunks_A": 0}),
        (Rotation, {"stride": -1}),
        (BlockDiagonal, {"blocks": 0}),
        (Basis, {"count": 0}),
        (Core, {"cores": 0}),
        (Core, {"cores": 4}),
        (Loadings, {"vectors": 0}),
        (Mix, {}),  # Nothing would be mixed.
        (Mix, {"count_A": 1, "count_B": 0}),
    ],
)
def test_options_that_mean_nothing(kind, options):
    with pytest.raises(ValidationError):
        kind(**options)


@pytest.mark.parametrize(
    ("transform", "widths", "says"),
    [
        (VectorBank(length=5), [Width(10, 12)], "vectors of length 5 cannot tile a width of 12"),
        (BlockDiagonal(blocks=4), [Width(8, 6)], "a width of 6 does not divide into 4 blocks"),
        (Rotation(), [Width(8, 8), Width(8, 6)], "different widths"),
        (Rotation(chunks_B=9), [Width(12, 8)], "9 chunks are more than its 8 columns"),
        (Experts(), [Width(8, 8), Width(8, 6)], "different widths"),
    ],
)
def test_widths_that_do_not_fit(transform, widths, says):
    def shapes():
        for role in transform.pooled:
            transform.shared_shape(role, 2, [side for w in widths for side in w.sides(role)])
        for width in widths:
            transform.own(2, width)

    with pytest.raises(ValueError, match=says):
        shapes()


def test_a_rotation_by_hand():
    chunk = torch.tensor([[1.0], [2.0], [3.0]])
    down, _ = Rotation(chunks_A=4, stride=1).factors({"A": chunk, "B": chunk}, 3, Width(4, 4))
    assert down.tolist() == [[1, 3, 2, 1], [2, 1, 3, 2], [3, 2, 1, 3]]
