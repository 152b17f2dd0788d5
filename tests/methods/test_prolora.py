"""PRoLoRA: the paper's equation, its count, and what rotation is for."""

import math

import pytest
import torch

from tests.methods.conftest import near, planned, sites

PARAMS = {"r_shared": 6, "r_unshared": 2, "chunks_A": 3, "chunks_B": 2, "lora_alpha": 12}


def turned(chunk, stride, chunks, width):
    """Copy i has, in row j, row ``j - i * stride`` of the chunk."""
    rank = chunk.shape[0]
    copies = [
        torch.stack([chunk[(j - i * stride) % rank] for j in range(rank)]) for i in range(chunks)
    ]
    return torch.cat(copies, 1)[:, :width]


def test_the_paper_s_equation(adapted):
    ours = adapted("prolora", **PARAMS)
    for site in ours.plan.sites:
        shared = ours.tensors(site.path, "rotated")
        own = ours.tensors(site.path, "unshared")
        # Rank 6 goes once round in three steps of two, or in two of three.
        a = torch.cat([own["A"], turned(shared["A"], 2, 3, site.d_in)])
        b = torch.cat([own["B"], turned(shared["B"], 3, 2, site.d_out)])
        near(ours.delta(site.path), 12 / 8 * b.T @ a)


@pytest.mark.parametrize("model", ["llama-7b", "llama-3-8b"])
def test_count(model):
    expected = sum(2 * (i + o) + 6 * (math.ceil(i / 3) + math.ceil(o / 2)) for i, o in sites(model))
    assert planned("prolora", model, **PARAMS).trainable == expected


def test_without_rotation_copies_are_one():
    """The paper's ablation: repetition alone leaves no more rank than a chunk has columns."""
    from bishare_dsl.transforms import Width, transform_kind

    rotation = transform_kind("Rotation")
    a, b = torch.randn(4, 2).double(), torch.randn(4, 2).double()

    def rank(stride):
        down, up = rotation(chunks_A=4, chunks_B=4, stride=stride).factors(
            {"A": a, "B": b}, 4, Width(8, 8)
        )
        return int(torch.linalg.matrix_rank(up.T @ down))

    assert rank(0) == 2 == rotation(stride=0).reach(4, Width(8, 8))
    assert rank(1) == 4 == rotation(stride=1).reach(4, Width(8, 8))


def test_a_chunk_starts_as_the_whole_factor_would():
    plan = planned("prolora")
    for site in plan.sites[:5]:
        for term in plan.terms_of[site.path]:
            assert plan.tensor[term.tensors["A"]].fan_in == site.d_in
