"""Groups of tasks: k-means on private numbers, scores of their number, and the note's tables."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from few import grouping, groups_tables, typed
from torch import Tensor

NOTE = Path(__file__).parents[2] / "benchmarks" / "notes" / "2026-12-03-groups.md"
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
        assert grouping.agreement(groups.tolist(), TYPES) == 1.0


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


def test_types_decide_by_different_keys_and_halves_share_no_item() -> None:
    family = typed.orders(Path(), lambda text: True)
    prompts = [family.prompts[item] for item in family.half(new=False)]
    assert not {*prompts} & {family.prompts[item] for item in family.half(new=True)}
    for kind in range(3):
        task = family.task(300 + kind)
        parts = [prompt.rstrip(":").split() for prompt in family.prompts]
        values = [part[kind] for part in parts]
        labels = {value: set() for value in values}
        for value, label in zip(values, task.labels, strict=True):
            labels[value].add(label)
        assert all(len(own) == 1 for own in labels.values())


def test_a_layout_belongs_to_one_type() -> None:
    family = typed.layouts(Path(), lambda text: True)
    task = family.task(402)
    asked = {i % family.layouts for i, label in enumerate(task.labels) if label != typed.NOT_ASKED}
    assert asked == {402 % family.types}
    assert task.options == typed.LAYOUT_WORDS[2]


def test_strayed_labels_stay_labels() -> None:
    labels = typed.strayed(random.Random(0), [0, 1, 2] * 100)
    changed = sum(a != b for a, b in zip(labels, [0, 1, 2] * 100, strict=True))
    assert set(labels) == {0, 1, 2}
    assert 10 < changed < 60


def test_a_verdict_is_as_registered() -> None:
    noise = np.array([-1.0, 1.0] * 24)
    assert groups_tables.verdict(noise + 3) == "ahead"
    assert groups_tables.verdict(noise - 3) == "behind"
    assert groups_tables.verdict(5 * noise) == "level"
    # The interval includes zero, but the mean is below -2.
    assert groups_tables.verdict(20 * noise - 2.5) == "behind"


def test_the_note_has_the_tables_of_its_results() -> None:
    results = (Path(groups_tables.__file__).parent / "groups.jsonl").read_text()
    rows = [json.loads(line) for line in results.splitlines()]
    tables = "\n".join(groups_tables.lines(rows)).rstrip() + "\n"
    assert NOTE.read_text(encoding="utf-8").endswith(tables)
