"""Groups of tasks: k-means on private numbers, and scores of their number."""

import math

import pytest
import torch
from torch import Tensor

from bishare_dsl.train.many import groups as grouping

TYPES = [0, 1, 2] * 8


def planted(spread: float) -> Tensor:
    """Private numbers of 24 members of three types, about an offset that all share."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 40, generator=draw)
    offset = 5 * torch.randn(40, generator=draw)
    noise = spread * torch.randn(len(TYPES), 40, generator=draw)
    return offset + centres[TYPES] + noise


def test_k_means_finds_planted_types_with_every_seed() -> None:
    points = grouping.directions(planted(0.5))
    assert torch.allclose(points.norm(dim=1), torch.ones(len(TYPES)))
    # What all members share says nothing about their types.
    assert torch.allclose(grouping.directions(planted(0.5) + 3), points, atol=1e-4)
    for seed in range(5):
        groups = grouping.k_means(points, 3, seed)
        # Numbered by the first member, so that equal partitions are equal tensors.
        assert groups.tolist() == TYPES


def test_k_means_leaves_no_group_empty() -> None:
    points = torch.zeros(5, 3)
    points[4] = 1.0
    for count in range(1, 6):
        groups = grouping.k_means(points, count, seed=0)
        assert sorted(set(groups.tolist())) == list(range(count))
    with pytest.raises(ValueError, match="6 groups of 5 points"):
        grouping.k_means(points, 6, seed=0)


def test_k_means_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    grouping.k_means(planted(0.5), 3, seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_scores_propose_the_planted_number_and_only_held_out_members_are_judged() -> None:
    private = planted(0.5)
    judged_members: list[int] = []

    def losses(adapters: Tensor, held: list[int]) -> Tensor:
        return torch.cdist(private[held], adapters)

    def correct(adapters: Tensor, held: list[int], choice: Tensor) -> Tensor:
        judged_members.extend(held)
        return torch.exp(-(private[held] - adapters[choice]).norm(dim=1) / 10)

    found = grouping.scores(private, (1, 2, 3, 4), 0, losses, correct)
    assert [score.groups for score in found] == [1, 2, 3, 4]
    assert found[0].ahead == 0
    assert found[0].error == 0
    assert found[2].ahead > 2 * found[2].error
    assert grouping.proposed(found) == 3
    # Each member is held out once for each number of groups.
    assert sorted(judged_members) == sorted([*range(len(private))] * 4)


def test_a_number_of_groups_within_two_errors_of_one_is_not_proposed() -> None:
    one = grouping.Score(groups=1, correct=0.5, ahead=0.0, error=0.0)
    unclear = grouping.Score(groups=2, correct=0.6, ahead=0.1, error=0.06)
    clear = grouping.Score(groups=3, correct=0.55, ahead=0.05, error=0.01)
    assert grouping.proposed([one, unclear]) == 1
    assert grouping.proposed([one, unclear, clear]) == 3


def test_few_members_or_rows_cannot_be_judged() -> None:
    assert grouping.cannot_be_judged(24, [16] * 24) == ""
    assert "23 members" in grouping.cannot_be_judged(23, [16] * 23)
    assert "15 rows" in grouping.cannot_be_judged(24, [16] * 23 + [15])


def test_a_newcomer_takes_the_least_loss_and_hears_the_margin() -> None:
    choice, margin = grouping.nearest_group(torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 9.0]]))
    assert choice.tolist() == [1, 0]
    assert margin.tolist() == [1.5, 4.0]
    assert grouping.nearest_group(torch.ones(1, 1))[1].tolist() == [math.inf]
