"""What starts from members is chosen on examples that neither way has seen."""

import pytest
import torch

from bishare_dsl.train.start import Record, choose, leave_out


class Counting:
    """A trial that remembers what it was asked; a row is a number, and member 1 answers all."""

    members = torch.eye(3)

    def __init__(self, trained_answers=False):
        self.judged, self.taught, self.answers = [], [], trained_answers

    def judge(self, values, pairs):
        self.judged.append((values.clone(), list(pairs)))
        losses = torch.tensor([1.0 - float(values[number, 1]) for number, _ in pairs])
        trained = torch.tensor([float(values[number].sum()) == 0 for number, _ in pairs])
        return losses, torch.where(trained, torch.tensor(self.answers), losses < 0.5)

    def trained(self, tasks):
        self.taught.append([list(rows) for rows in tasks])
        return torch.zeros(len(tasks), 3)


@pytest.mark.parametrize("trained_answers", [False, True])
def test_each_fold_is_judged_by_what_the_others_teach(trained_answers):
    trial = Counting(trained_answers)
    record = Record(sharpness=float("inf"))
    found = choose(trial, [[10, 11, 12, 13, 14]], "auto", record, trains=True)
    ((taught,), (_, sums), (_, alone)) = trial.taught, trial.judged[1], trial.judged[2]
    assert sums == alone
    assert sorted(row for _, row in sums) == [10, 11, 12, 13, 14]
    for number, row in sums:
        assert row not in taught[number]
        held_out = {other for n, other in sums if n == number}
        assert sorted({*taught[number]} | held_out) == [10, 11, 12, 13, 14]
    # A tie goes to training.
    assert ([*found] == [0]) is not trained_answers
    if found:
        assert found[0][0].tolist() == [0, 1, 0]
        assert found[0][1].endswith(": 5/5 correct, trained 0")


def test_a_library_that_lost_to_training_needs_more_of_an_example_to_win():
    # Eight examples' worth of the record stand against the four that members answer.
    lost, level = (Record(sharpness=float("inf"), ahead=ahead) for ahead in (-0.5, -0.4))
    assert choose(Counting(), [[1, 2, 3, 4]], "auto", lost, trains=True) == {}
    assert [*choose(Counting(), [[1, 2, 3, 4]], "auto", level, trains=True)] == [0]


def test_a_member_that_is_left_out_is_judged_by_the_others_on_what_only_it_has():
    tasks = [[1, 2, 3, 4], [3, 5, 6, 7], [8, 9, 10, 4]]
    trial = Counting()
    record = leave_out(trial, tasks, tasks)
    judged = [row for _, row in trial.judged[1][1]]
    assert judged == [6, 7, 10]  # 3 and 4 have two members; the first two of each weigh.
    assert trial.taught == [[[1, 2], [3, 5], [8, 9]]]
    for values, _ in trial.judged[1:-1]:
        assert values.diagonal().tolist() == [0, 0, 0]
    assert record.examples == 3
    # Member 1 answers the third task, and nothing answers it when it is left out itself.
    assert record.correct == pytest.approx(1 / 3)
    assert record.ahead == pytest.approx(1 / 3)


@pytest.mark.parametrize("tasks", [[[1, 2], [3, 4]], [[1], [2], [3]], [[1, 2], [1, 2], [1, 2]]])
def test_too_little_gives_no_record(tasks):
    trial = Counting()
    trial.members = torch.eye(3)[: len(tasks)]
    assert leave_out(trial, tasks, tasks) is None
