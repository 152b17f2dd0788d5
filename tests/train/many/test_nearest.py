"""New tasks of a library of groups."""

import json
import shutil

import pytest
import torch

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.folder.files import names_in, read_adapter
from bishare_dsl.folder.groups import GROUPS, read_groups
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.train import train
from bishare_dsl.train.many.groups import Comparison, GroupChoice, choices_text

HOW = {"tokenizer": tiny_tokenizer(), "quiet": True}
LIMITS = {"low/a": 15, "low/b": 20, "high/c": 80, "high/d": 75}


def write(path, limit, first, count=24, options=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for n in ((37 * i) % 97 for i in range(first, first + count)):
        row = {"prompt": f"{n}: ", "completion": "yes" if n > limit else "no"}
        rows.append({**row, "options": ["yes", "no"]} if options else row)
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nearest")
    for number, (name, limit) in enumerate(LIMITS.items()):
        write(folder / "data" / f"{name}.jsonl", limit, 10 * number)
    how = {"params": {"r": 2, "first": -1}, "max_steps": 20, "learning_rate": 0.03, **HOW}
    model, data, out = tiny_model("llama"), str(folder / "data"), folder / "run"
    train("library_core", model, data, out, groups="by-folder", **how)
    return out / "library"


def added(library, data, out, **how):
    model = tiny_model("llama")
    return train(None, model, data, out, library=str(library), **{**HOW, **how})


def own(library, name):
    stored = read_adapter(f"{library}#{name}")
    return {key: t for key, t in stored.tensors().items() if key not in stored.plan.common}


@pytest.mark.parametrize(("group", "limit"), [("high", 78), ("low", 17)])
def test_a_new_task_is_the_group_with_the_least_loss_and_nothing_trains(
    library, tmp_path, group, limit
):
    data = write(tmp_path / "new.jsonl", limit, 50, 8)
    result = added(library, {"new": data}, tmp_path / "out")
    choice = result.group_choices["new"]
    losses = {}
    for name in names_in(library):
        # The group alone, judged by another path: the loss of a run's first step.
        how = {"max_steps": 1, "learning_rate": 0.0}
        member = str(read_adapter(f"{library}#{name}").folder)
        losses[name] = train(
            member, tiny_model("llama"), data, tmp_path / name, **how, **HOW
        ).loss_first
    near, far = sorted(losses, key=losses.__getitem__)
    assert near == group
    assert (choice.group, choice.next_group, choice.examples) == (near, far, 8)
    assert choice.loss == pytest.approx(losses[near], rel=1e-3)
    assert choice.next_loss == pytest.approx(losses[far], rel=1e-3)
    assert choice.margin == pytest.approx(8 * (losses[far] - losses[near]), rel=1e-3)
    assert choice.comparison is None
    (task,) = result.tasks
    assert (task.steps, task.start) == (0, f"nearest group: {near}")
    copy = tmp_path / "out" / "library"
    for key, tensor in own(copy, "new").items():
        assert torch.equal(tensor, own(library, near)[key])
    assert read_groups(copy).newcomers == {"new": near}
    assert not read_groups(library).newcomers
    text = str(result)
    assert "steps          none: not trained" in text
    assert f"new   {near}" in text
    json.dumps(result.as_dict(), default=str)


def test_the_comparison_is_what_the_other_starts_would_have(library, tmp_path):
    data = {"new": write(tmp_path / "new.jsonl", 60, 40, 20)}
    how = {"eval_split": 10}
    result = added(library, data, tmp_path / "group", **how)
    found = result.group_choices["new"].comparison
    assert (found.chosen_by, found.examples) == (10, 10)
    others = {"mixture": {"max_steps": 0}, "zero": {}}
    counts = {"group": result.accuracy}
    for start, more in others.items():
        counts[start] = added(library, data, tmp_path / start, start=start, **more, **how).accuracy
    assert {name: getattr(found, name) / 10 for name in counts} == pytest.approx(counts)
    # The ways differ here, so that none can be taken for another.
    assert len(set(counts.values())) > 1


def test_without_held_out_examples_eight_choose_and_the_others_judge(library, tmp_path):
    data = {
        "many": write(tmp_path / "many.jsonl", 78, 50, 16),
        "few": write(tmp_path / "few.jsonl", 78, 50, 15),
        "plain": write(tmp_path / "plain.jsonl", 78, 50, 16, options=False),
    }
    choices = added(library, data, tmp_path / "out").group_choices
    found = choices["many"].comparison
    assert (found.chosen_by, found.examples) == (8, 8)
    assert choices["many"].examples == 16
    assert choices["few"].comparison is None
    assert choices["plain"].comparison is None


def test_later_tasks_choose_among_groups_and_not_among_new_tasks(library, tmp_path):
    first = {"first": write(tmp_path / "first.jsonl", 78, 50, 8)}
    added(library, first, tmp_path / "one")
    second = {"second": write(tmp_path / "second.jsonl", 78, 50, 8)}
    result = added(tmp_path / "one" / "library", second, tmp_path / "two")
    choice = result.group_choices["second"]
    assert {choice.group, choice.next_group} == set(names_in(library))
    newcomers = read_groups(tmp_path / "two" / "library").newcomers
    assert newcomers == {"first": choice.group, "second": choice.group}
    mixed = added(
        tmp_path / "two" / "library",
        {"third": first["first"]},
        tmp_path / "three",
        start="mixture",
        max_steps=0,
    )
    assert mixed.tasks[0].start == "mixture of 2 members, sharpness 1"


def test_steps_that_are_asked_for_train_and_a_group_never_does(library, tmp_path):
    data = {"new": write(tmp_path / "new.jsonl", 78, 50, 8)}
    result = added(library, data, tmp_path / "zero", max_steps=2)
    assert [(task.steps, task.start) for task in result.tasks] == [(2, None)]
    assert not result.group_choices
    assert added(library, data, tmp_path / "none", max_steps=0).group_choices
    with pytest.raises(BishareError, match=r"(?s)BS732.*does not train it.*`--start zero`"):
        added(library, data, tmp_path / "refused", max_steps=2, start="group")
    assert not (tmp_path / "refused").exists()


def test_a_library_without_groups_has_none_to_take(library, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(library, plain)
    (plain / GROUPS).unlink()
    data = {"new": write(tmp_path / "new.jsonl", 78, 50, 8)}
    with pytest.raises(BishareError, match=r"(?s)BS732.*plain` has no groups.*`--groups`"):
        added(plain, data, tmp_path / "out", start="group")
    with pytest.raises(BishareError, match="nothing reads `start`"):
        train("lora", tiny_model("llama"), data, tmp_path / "out", start="group", **HOW)
    (plain / GROUPS).write_text("{")
    with pytest.raises(BishareError, match=r"BS608.*groups\.json"):
        added(plain, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_finite_loss_nothing_is_taken_or_written(library, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(library, copy)
    from bishare_dsl.folder.files import add_to_library

    for name in names_in(copy):
        stored = read_adapter(f"{copy}#{name}")
        bad = {
            k: t if k in stored.plan.common else torch.full_like(t, 1e30)
            for k, t in stored.tensors().items()
        }
        add_to_library(copy, {name: bad})
    data = {"new": write(tmp_path / "new.jsonl", 78, 50, 8)}
    with pytest.raises(BishareError, match=r"(?s)BS732.*no group of.*--start zero"):
        added(copy, data, tmp_path / "out")
    assert not (tmp_path / "out" / "library").exists()


def test_a_small_margin_is_unsure():
    sure = GroupChoice(
        "a", 0.1, "b", 0.9, margin=6.4, examples=8, comparison=Comparison(8, 9, 7, 6, 5)
    )
    unsure = GroupChoice("a", 0.1, "b", 0.2, margin=0.8, examples=8)
    lines = choices_text({"one": sure, "two": unsure}).splitlines()
    assert lines[2].split() == ["one", "a", "0.1000", "b", "0.9000", "6.4"]
    assert lines[3].split() == ["two", "a", "0.1000", "b", "0.2000", "0.8", "unsure"]
    assert ["one", "8", "9", "7", "6", "5"] in [line.split() for line in lines]
