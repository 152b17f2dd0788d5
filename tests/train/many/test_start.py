"""New adapters of a library that start from its members."""

import json
import math
import shutil

import pytest
import torch

from bishare_dsl.diagnostics import BishareWarning
from bishare_dsl.folder.card import STARTS
from bishare_dsl.folder.contents import own_file
from bishare_dsl.folder.files import add_to_library, names_in, read_adapter, save_library
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.train import TrainError, newcomers, train
from bishare_dsl.train.many import start as start_module
from bishare_dsl.train.many.adapters import TaskAdapters
from bishare_dsl.train.many.start import (
    SHARPNESS,
    Judged,
    Record,
    Score,
    leave_out,
    member_losses,
    sharpest,
    sums_of_members,
    weights,
)
from tests.support.customers import HOW, LIMITS, private_tensors, rows, train_library


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return train_library(tmp_path_factory.mktemp("start"), max_steps=6)


@pytest.fixture
def recorded(library):
    """A function that writes the record of the library, for one test."""
    yield (library / STARTS).write_text
    (library / STARTS).unlink()


def added(library, out, start, count=8, data="new", **how):
    tasks = {data: rows(out.with_suffix(".jsonl"), 45, count, 5)}
    how = {"max_steps": 0, **HOW, **how}
    return train(None, tiny_model("llama"), tasks, out, library=str(library), start=start, **how)


def test_weights_go_from_the_mean_to_the_nearest_member():
    losses = torch.tensor([[2.0, 1.0, 4.0], [0.5, math.inf, 0.5]])
    mean, nearest = weights(losses, 0.0), weights(losses, math.inf)
    torch.testing.assert_close(mean, torch.tensor([[1 / 3] * 3, [0.5, 0, 0.5]]))
    assert nearest.tolist() == [[0, 1, 0], [1, 0, 0]]
    # softmax(-0.5 * losses), by hand.
    expected = torch.tensor([math.exp(-1), math.exp(-0.5), math.exp(-2)])
    torch.testing.assert_close(weights(losses, 0.5)[0], expected / expected.sum())
    assert weights(losses, 3.0)[1, 1] == 0


def test_the_most_correct_sharpness_wins_and_the_loss_decides_ties():
    ties = {0.0: Score(0.5, 1.0), 1.0: Score(0.7, 3.0), math.inf: Score(0.7, 2.0)}
    assert sharpest(ties) == math.inf
    assert sharpest({**ties, math.inf: Score(0.7, math.nan)}) == 1.0


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sharpness", SHARPNESS)
def test_a_loss_that_is_not_finite_has_no_weight(lost, sharpness):
    found = weights(torch.tensor([3.0, lost, 2.0]), sharpness)
    assert found[1] == 0
    assert float(found.sum()) == pytest.approx(1)
    assert found[2] >= found[0]


def test_the_mean_and_the_nearest_member_are_what_they_say(library, recorded, tmp_path, recwarn):
    members = {name: private_tensors(library, name) for name in LIMITS}
    recorded(Record(sharpness=0.0).model_dump_json())
    mean = added(library, tmp_path / "mean", "mixture").tasks[0]
    for key, value in private_tensors(tmp_path / "mean" / "library", "new").items():
        torch.testing.assert_close(value, sum(m[key] for m in members.values()) / 3)
    assert mean.steps == 0
    assert mean.start == "mixture of 3 members, sharpness 0"
    recorded(Record(sharpness=math.inf).model_dump_json())
    added(library, tmp_path / "nearest", "mixture")
    found = private_tensors(tmp_path / "nearest" / "library", "new")
    assert any(all(torch.equal(found[k], v) for k, v in m.items()) for m in members.values())
    assert not [w for w in recwarn if "BS738" in str(w.message)]
    # As many bytes as any other member.
    folder = tmp_path / "mean" / "library"
    assert len({(folder / own_file(name)).stat().st_size for name in names_in(folder)}) == 1


@pytest.mark.parametrize("sharpness", [0.0, 0.3, math.inf])
def test_a_member_without_a_finite_loss_is_left_out_and_named(library, tmp_path, sharpness):
    copy = tmp_path / "library"
    shutil.copytree(library, copy)
    (copy / STARTS).write_text(Record(sharpness=sharpness).model_dump_json())
    expected = tmp_path / "expected"
    added(copy, expected, "mixture")
    stored = read_adapter(f"{copy}#low")
    bad = {
        name: tensor.clone() if name in stored.plan.common else torch.full_like(tensor, 1e30)
        for name, tensor in stored.tensors().items()
    }
    add_to_library(copy, {"bad": bad})
    with pytest.warns(BishareWarning, match=r"BS739(?s:.*)`bad` of"):
        (task,) = added(copy, tmp_path / "out", "mixture").tasks
    assert task.start == f"mixture of 3 members, sharpness {sharpness:g}"
    wanted = private_tensors(expected / "library", "new")
    for key, tensor in private_tensors(tmp_path / "out" / "library", "new").items():
        torch.testing.assert_close(tensor, wanted[key])


def test_without_a_finite_member_zero_is_the_remedy(library, tmp_path, recorded):
    recorded(Record().model_dump_json())
    stored = read_adapter(f"{library}#low")
    bad = {
        name: tensor if name in stored.plan.common else torch.full_like(tensor, 1e30)
        for name, tensor in stored.tensors().items()
    }
    save_library(tmp_path / "bad", stored.plan, {"bad": bad}, stored.spec_text, seed=0)
    (tmp_path / "bad" / STARTS).write_text(Record().model_dump_json())
    with pytest.raises(TrainError, match=r"BS732(?s:.*)no member(?s:.*)--start zero"):
        added(tmp_path / "bad", tmp_path / "out", "mixture")
    # One member has no record, and is no reason to start from it.
    (task,) = added(tmp_path / "bad", tmp_path / "zero", None, max_steps=1).tasks
    assert task.start is None


def test_by_default_few_examples_take_the_sum_and_more_train_from_zero(
    library, recorded, tmp_path, capsys
):
    recorded(Record(sharpness=1.0).model_dump_json())
    data = {f"new-{n}": rows(tmp_path / f"{n}.jsonl", 45, n, 5) for n in (15, 16)}
    how = {**HOW, "quiet": False}
    result = train(None, tiny_model("llama"), data, tmp_path / "out", library=str(library), **how)
    few, more = result.tasks
    assert (few.start, few.steps) == ("mixture of 3 members, sharpness 1", 0)
    assert (more.start, more.steps) == (None, 80)
    said = capsys.readouterr().err
    assert "1 of them sums of members that do not train: `--max_steps` trains them" in said
    # The sum is what `--start mixture` gives, and the other task has not moved it.
    alone = {"new-15": data["new-15"]}
    how = {"library": str(library), "start": "mixture", "max_steps": 0}
    train(None, tiny_model("llama"), alone, tmp_path / "alone", **how, **HOW)
    expected = private_tensors(tmp_path / "alone" / "library", "new-15")
    for key, tensor in private_tensors(tmp_path / "out" / "library", "new-15").items():
        torch.testing.assert_close(tensor, expected[key])


def test_steps_that_are_asked_for_train_the_sum(library, recorded, tmp_path):
    recorded(Record(sharpness=1.0).model_dump_json())
    for how in ({"max_steps": 2}, {"num_train_epochs": 2}):
        folder = tmp_path / next(iter(how))
        model = tiny_model("llama")
        tasks = {"new": rows(folder.with_suffix(".jsonl"), 45, 8, 5)}
        (task,) = train(None, model, tasks, folder, library=str(library), **how, **HOW).tasks
        assert task.start == "mixture of 3 members, sharpness 1"
        assert task.steps == 2
    (task,) = added(library, tmp_path / "zero", "zero", max_steps=2).tasks
    assert task.start is None


def test_a_mixture_weighs_members_by_the_loss_that_evaluation_gives(library, recorded, tmp_path):
    held = rows(tmp_path / "held.jsonl", 45, 8, 5)
    losses = {}
    for name in LIMITS:
        # The member alone, judged on the same rows by another path: the loss of a run's first step.
        out = tmp_path / name
        how = {"max_steps": 1, "learning_rate": 0.0}
        model, member = tiny_model("llama"), str(read_adapter(f"{library}#{name}").folder)
        losses[name] = 8 * train(member, model, held, out, **{**HOW, **how}).loss_first
    recorded(Record(sharpness=0.7).model_dump_json())
    added(library, tmp_path / "mixture", "mixture")
    shares = torch.tensor([-0.7 * losses[name] for name in LIMITS]).softmax(0)
    members = [private_tensors(library, name) for name in LIMITS]
    for key, value in private_tensors(tmp_path / "mixture" / "library", "new").items():
        expected = sum(share * m[key] for share, m in zip(shares, members, strict=True))
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5)


def test_nothing_of_the_trial_stays_in_the_model(library, tmp_path):
    result = added(library, tmp_path / "out", "mixture", max_steps=2)
    assert [*result.model.bishare.adapters] == ["new"]
    assert names_in(tmp_path / "out" / "library") == (*names_in(library), "new")


def test_a_new_library_records_how_later_tasks_should_start(library, tmp_path):
    made = train_library(tmp_path, max_steps=2)
    record = Record.of(made)
    assert record.sharpness in SHARPNESS
    assert record.examples == sum(
        1
        for i in range(3)
        for n in range(30 * i + 8, 30 * i + 24)
        if all(
            (37 * n) % 97 != (37 * k) % 97
            for j in range(3)
            if j != i
            for k in range(30 * j, 30 * j + 24)
        )
    )
    # It goes with the library's copies.
    added(made, tmp_path / "out", "mixture")
    assert Record.of(tmp_path / "out" / "library") == record
    assert not (train_library(tmp_path, "plain", start="zero", max_steps=2) / STARTS).exists()


@pytest.mark.parametrize("text", ["{", '{"sharpness": -1}', '{"correct": 7}', "[1]", ""])
def test_a_damaged_record_is_as_none_and_a_warning_says_so(library, recorded, tmp_path, text):
    recorded(text)
    assert Record.of(library) is None
    with pytest.warns(BishareWarning, match=r"BS738(?s:.*)start\.json"):
        (task,) = added(library, tmp_path / "out", "mixture").tasks
    assert task.start == "mixture of 3 members, sharpness 1"


def test_the_card_says_the_sharpness_and_its_score(library, tmp_path):
    copy = tmp_path / "library"
    shutil.copytree(library, copy)
    record = Record(sharpness=math.inf, correct=0.75, examples=48)
    # As 0.5 wrote it.
    (copy / STARTS).write_text(json.dumps({**record.model_dump(mode="json"), "ahead": -0.1}))
    assert Record.of(copy) == record
    added(copy, tmp_path / "out", "mixture")
    said = "A sum of members of sharpness inf answers 75.0% of 48 examples of members that were left out."
    assert (tmp_path / "out" / "library" / "README.md").read_text().count(said) == 1
    member = read_adapter(f"{copy}#low")
    add_to_library(copy, {"more": member.tensors()})
    assert (copy / "README.md").read_text().count(said) == 1
    # A library that replaces this one has no record yet.
    save_library(copy, member.plan, {"low": member.tensors()}, member.spec_text, seed=0)
    assert not (copy / STARTS).exists()
    assert "## New tasks" not in (copy / "README.md").read_text()


@pytest.mark.parametrize("start", ["zero", "mixture"])
def test_a_resumed_run_keeps_the_starts_that_it_began_with(library, tmp_path, start, monkeypatch):
    """The library's record may be another by then."""
    (first,) = added(library, tmp_path / "out", start, max_steps=2).tasks
    monkeypatch.setattr(Record, "of", lambda _: Record(sharpness=0.3))
    how = {"model": tiny_model("llama"), "resume": tmp_path / "out", **HOW}
    other = "zero" if start == "mixture" else "mixture"
    with pytest.raises(TrainError, match="nothing reads `start`"):
        train(start=other, **how)
    (task,) = train(max_steps=3, **how).tasks
    assert (task.start, task.steps) == (first.start, 3)
    assert (task.start is not None) is (start == "mixture")


@pytest.mark.parametrize("steps", [None, 0])
def test_a_checkpoint_of_05_is_resumed_unless_it_left_tasks_untrained(
    library, tmp_path, steps, monkeypatch
):
    monkeypatch.setattr(newcomers, "record_of", lambda _: {"starts": [["mean of 3", steps]]})
    added(library, tmp_path / "out", "zero", max_steps=2)
    how = {"model": tiny_model("llama"), "resume": tmp_path / "out", "max_steps": 3, **HOW}
    if steps is None:
        assert train(**how).tasks[0].start == "mean of 3"
    else:
        with pytest.raises(TrainError, match=r"BS732(?s:.*)0\.5 left tasks(?s:.*)new run"):
            train(**how)


class Counting:
    """A trial that remembers what it was asked; a row is a number, and member 1 answers all."""

    members = torch.eye(3)

    def __init__(self):
        self.judged = []

    def judge(self, values, pairs):
        self.judged.append((values.clone(), list(pairs)))
        losses = torch.tensor([1.0 - float(values[number, 1]) for number, _ in pairs])
        return Judged(losses, losses < 0.5)


def test_a_member_that_is_left_out_is_judged_by_the_others_on_what_only_it_has():
    tasks = [[1, 2, 3, 4], [3, 5, 6, 7], [8, 9, 10, 4]]
    trial = Counting()
    record = leave_out(trial, tasks, tasks)
    judged = [row for _, row in trial.judged[1][1]]
    assert judged == [6, 7, 10]  # 3 and 4 have two members; the first two of each weigh.
    assert [row for _, row in trial.judged[0][1]] == [
        n for n in (1, 2, 3, 5, 8, 9) for _ in range(3)
    ]
    for values, _ in trial.judged[1:]:
        assert values.diagonal().tolist() == [0, 0, 0]
    assert record.examples == 3
    # Member 1 answers the third task, and nothing answers it when it is left out itself.
    assert record.correct == pytest.approx(1 / 3)


def test_an_example_of_two_tasks_is_judged_once():
    trial = Counting()
    losses = member_losses(trial, [[10, 11], [11, 12]])
    assert losses.tolist() == [[2.0, 0.0, 2.0]] * 2
    assert sums_of_members(trial, losses, math.inf).tolist() == [[0, 1, 0]] * 2
    assert [row for _, row in trial.judged[0][1]] == [10] * 3 + [11] * 3 + [12] * 3


def test_customers_share_the_states_of_a_prompt_and_members_go_through_in_whole(
    library, tmp_path, monkeypatch
):
    ran, below = [], []
    run = TaskAdapters.run

    def noted(self, batch, *arguments):
        ran.append((batch.names, batch.inputs["attention_mask"].sum(1).tolist()))
        return run(self, batch, *arguments)

    monkeypatch.setattr(TaskAdapters, "run", noted)
    monkeypatch.setattr(start_module, "TOKENS", 100)
    model = tiny_model("llama")
    lowest = model.model.layers[0].self_attn
    lowest.register_forward_pre_hook(
        lambda _, __, given: below.append(len(given["hidden_states"])), with_kwargs=True
    )
    tasks = {name: rows(tmp_path / f"{name}.jsonl", limit, 8, 5) for name, limit in LIMITS.items()}
    new = {f"new-{name}": file for name, file in tasks.items()}
    train(
        None,
        model,
        new,
        tmp_path / "out",
        library=str(library),
        start="mixture",
        max_steps=0,
        **HOW,
    )
    texts = [(tmp_path / f"{name}.jsonl").read_text().splitlines() for name in LIMITS]
    distinct = {line for lines in texts for line in lines}
    prompts = {json.loads(line)["prompt"] for line in distinct}
    # After the trial, the block below the adapters runs once for each prompt, and reads no answer.
    assert sum(below[3:]) == len(prompts) < len(distinct) < 24
    assert sum(len(names) for names, _ in ran) == 3 * len(distinct)
    for names, lengths in ran:
        assert len({names.count(name) for name in names}) == 1
        assert len(names) * max(lengths) <= 100


@pytest.mark.parametrize("tasks", [[[1, 2], [3, 4]], [[1], [2], [3]], [[1, 2], [1, 2], [1, 2]]])
def test_too_little_gives_no_record(tasks):
    trial = Counting()
    trial.members = torch.eye(3)[: len(tasks)]
    assert leave_out(trial, tasks, tasks) is None
