"""Groups that a run finds among its tasks, and scores of their number."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from bishare_dsl.diagnostics import BishareError, BishareWarning
from bishare_dsl.folder.files import names_in, read_adapter
from bishare_dsl.folder.groups import GROUPS, read_groups
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.train import TrainingInterrupted, train
from bishare_dsl.train.many import found, groups
from bishare_dsl.train.many import start as start_module

HOW = {"tokenizer": tiny_tokenizer(), "quiet": True, "learning_rate": 0.03, "max_steps": 12}
LIBRARY = {"spec": "library_core", "params": {"r": 2, "first": -1}}
WORDS = {"a": ("yes", "no"), "b": ("no", "yes")}
"""The two types answer the opposite of each other."""


def write(path, kind, first, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    small, big = WORDS[kind]
    sizes = [(37 * number) % 97 for number in range(first, first + count)]
    rows = [
        {"prompt": f"{n}: ", "completion": big if n > 48 else small, "options": ["yes", "no"]}
        for n in sizes
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def tasks_of(folder, count, rows=8):
    """Write tasks of two types in turns, `a` first."""
    return {f"t{n}": write(folder / f"t{n}.jsonl", "ab"[n % 2], 7 * n, rows) for n in range(count)}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return tasks_of(tmp_path_factory.mktemp("tasks"), 6)


def trained(data, out, **how):
    arguments = {**LIBRARY, **HOW, **how}
    return train(model=tiny_model("llama"), data=data, output_dir=out, **arguments)


def resumed(out, **how):
    return train(
        model=tiny_model("llama"), resume=out, tokenizer=HOW["tokenizer"], quiet=True, **how
    )


def tensors(library):
    return {name: read_adapter(f"{library}#{name}").tensors() for name in names_in(library)}


def assert_equal(library, other):
    expected = tensors(other)
    found_tensors = tensors(library)
    assert found_tensors.keys() == expected.keys()
    for name, values in found_tensors.items():
        for key, value in values.items():
            assert torch.equal(value, expected[name][key]), (name, key)


@pytest.fixture(scope="module")
def whole(tasks, tmp_path_factory):
    """A run that finds two groups, and what it has noted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.warns(BishareWarning, match=r"BS757.*6 members, and groups need 24"):
        trained(tasks, out, groups=2)
    return out


def test_a_library_of_tasks_is_trained_clustered_and_trained_on_as_groups(whole, tasks):
    record = read_groups(whole / "library")
    assert sorted(name for names in record.tasks.values() for name in names) == sorted(tasks)
    assert record.were_found
    assert record == read_groups(whole)
    assert list(record.tasks) == ["group-1", "group-2"]
    assert set(names_in(whole / "library")) == set(record.tasks)
    # The library of all tasks stays, with its record of sums of members.
    assert set(names_in(whole / "members" / "library")) == set(tasks)
    assert (whole / "members" / "library" / "start.json").is_file()
    assert not (whole / "library" / "start.json").exists()


def test_the_groups_are_those_of_k_means_on_private_numbers(whole, tasks):
    record = read_groups(whole)
    stored = [read_adapter(f"{whole}/members/library#{name}") for name in tasks]
    private = [name for name in sorted(stored[0].tensors()) if name not in stored[0].plan.common]
    rows = [torch.cat([one.tensors()[name].flatten() for name in private]) for one in stored]
    labels = groups.k_means(groups.directions(torch.stack(rows)), 2, seed=0)
    names = list(tasks)
    for number, members in enumerate(record.tasks.values()):
        assert list(members) == [names[i] for i in range(len(names)) if labels[i] == number]


def test_groups_start_at_the_means_of_their_members_with_what_the_library_shares(
    whole, tasks, tmp_path
):
    shutil.copytree(whole / "members", tmp_path / "out" / "members")
    for name in (GROUPS, "run.json"):
        shutil.copy(whole / name, tmp_path / "out" / name)
    # One step at a rate of 0 changes nothing.
    resumed(tmp_path / "out", max_steps=1, learning_rate=0.0)
    members = tensors(whole / "members" / "library")
    common = read_adapter(f"{whole}/members/library#t0").plan.common
    started = tensors(tmp_path / "out" / "library")
    for group, names in read_groups(whole).tasks.items():
        for key, value in started[group].items():
            expected = torch.stack([members[name][key] for name in names]).mean(0)
            if key in common:
                assert torch.equal(value, members["t0"][key])
            else:
                torch.testing.assert_close(value, expected)


def test_the_same_seed_finds_the_same_groups(whole, tasks, tmp_path, recwarn):
    trained(tasks, tmp_path / "again", groups=2)
    assert read_groups(tmp_path / "again") == read_groups(whole)
    assert_equal(tmp_path / "again" / "library", whole / "library")


@pytest.mark.parametrize("step", [5, 12 + 5])
def test_a_run_that_is_stopped_in_either_part_goes_on_bit_for_bit(
    whole, tasks, tmp_path, step, recwarn
):
    out = tmp_path / "out"
    with pytest.raises(TrainingInterrupted) as stopped:
        trained(tasks, out, groups=2, callbacks=[AsksInAll(step)])
    assert stopped.value.folder == out
    assert (out / GROUPS).exists() is (step > 12)
    with pytest.raises(
        BishareError, match=r"(?s)BS732.*nothing reads `groups`.*another `--output_dir`"
    ):
        resumed(out, groups=3)
    resumed(out)
    assert_equal(out / "library", whole / "library")
    assert read_groups(out / "library") == read_groups(whole / "library")


class AsksInAll(TrainerCallback):
    """Asks for a stop at a step, counted over both parts of a run."""

    def __init__(self, step):
        self.left = step

    def on_step_begin(self, *_, **__):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def test_groups_that_are_stored_are_read_and_not_found_again(whole, tasks, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(whole / "members", out / "members")
    shutil.copy(whole / "run.json", out / "run.json")
    record = json.loads((whole / GROUPS).read_text())
    names = sorted(tasks)
    record["tasks"] = {"group-1": names[:1], "group-2": names[1:]}
    (out / GROUPS).write_text(json.dumps(record))
    monkeypatch.setattr(found, "k_means", None)
    result = resumed(out, max_steps=1)
    assert [task.rows for task in result.tasks] == [8, 40]
    # In other examples they would be other groups.
    (out / GROUPS).write_text(json.dumps(record | {"data": "other"}))
    shutil.rmtree(out / "library")
    for checkpoint in out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (out / "trainer_state.json").unlink()
    with pytest.raises(
        BishareError, match=r"(?s)BS732.*groups in `.*out` were found in other examples"
    ):
        resumed(out, max_steps=1)


def test_a_run_that_was_killed_between_its_parts_goes_on(whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole / "members", out / "members")
    for checkpoint in (out / "members").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    shutil.copy(whole / "run.json", out / "run.json")
    resumed(out)
    assert_equal(out / "library", whole / "library")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"groups": 7}, "BS749.*7 groups cannot be made of 6 tasks.*from 2 to 6"),
        ({"groups": 1}, "BS731.*there are two groups at least"),
        ({"groups": 0}, "BS731"),
        (
            {"groups": 2, "spec": "lora", "params": {}},
            "BS749.*`lora` share nothing.*`library_core`",
        ),
        ({"groups": "scores"}, "BS749.*cannot be judged: 6 members, and groups need 24"),
        ({"groups": "scores", "together": True}, "BS732.*`together` is given"),
    ],
)
def test_what_cannot_be_grouped_is_refused_before_anything_is_written(tasks, tmp_path, how, said):
    with pytest.raises(BishareError, match=f"(?s){said}"):
        trained(tasks, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_an_occupied_place_is_refused_before_anything_trains(tasks, whole, tmp_path):
    shutil.copytree(whole / "library", tmp_path / "out" / "library")
    with pytest.raises(BishareError, match="BS740"):
        trained(tasks, tmp_path / "out", groups=2)
    assert not (tmp_path / "out" / "members").exists()
    with pytest.raises(BishareError, match="BS740"):
        trained(tasks, whole, groups=2)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return tasks_of(tmp_path_factory.mktemp("many"), 24, rows=16)


def test_scores_compare_one_to_four_groups_and_train_no_group(many, tmp_path, capsys):
    result = trained(many, tmp_path / "out", groups="scores", quiet=False)
    assert "scoring numbers of groups" in capsys.readouterr().err
    judged = result.group_scores
    assert [score.groups for score in judged.scores] == [1, 2, 3, 4]
    assert judged.scores[0].ahead == 0
    assert judged.proposal == groups.proposed(judged.scores)
    text = str(result)
    assert "groups  score  ahead of 1  error" in text
    assert "A score compares numbers of groups, and is no accuracy" in text
    assert json.loads(json.dumps(result.as_dict(), default=str))["group_scores"]["proposal"]
    assert set(names_in(tmp_path / "out" / "library")) == set(many)
    assert read_groups(tmp_path / "out" / "library") is None
    assert not (tmp_path / "out" / "members").exists()


def test_a_proposal_names_the_command_that_follows_it():
    clear = groups.Score(groups=3, correct=0.8, ahead=0.3, error=0.05)
    one = groups.Score(groups=1, correct=0.5, ahead=0.0, error=0.0)
    text = str(groups.GroupScores((one, clear), 3))
    assert "3 groups are proposed" in text
    assert "`--groups 3` trains them" in text
    assert "no groups are proposed" in str(groups.GroupScores((one,), 1))


def test_tasks_without_options_have_no_scores(many, tmp_path):
    rows = [json.loads(line) for line in Path(many["t3"]).read_text().splitlines()]
    plain = tmp_path / "t3.jsonl"
    plain.write_text(
        "\n".join(json.dumps({k: v for k, v in row.items() if k != "options"}) for row in rows)
    )
    with pytest.raises(BishareError, match=r"(?s)BS749.*`.*t3\.jsonl` have no `options`"):
        trained({**many, "t3": str(plain)}, tmp_path / "out", groups="scores")
    assert not (tmp_path / "out").exists()


def test_held_out_members_choose_by_their_first_shuffled_rows_and_are_judged_on_others():
    class Trial:
        rows = [list(range(100 * n, 100 * n + 20)) for n in range(3)]
        members = torch.eye(3)
        judged = []

        def judge(self, values, pairs):
            self.judged.append(pairs)
            losses = torch.tensor([float(adapter) for adapter, _ in pairs])
            return start_module.Judged(losses, losses == 1)

    trial = found._HeldOut(Trial(), seed=0)
    for rows, choosing, judging in zip(Trial.rows, trial.choosing, trial.judging, strict=True):
        assert sorted([*choosing, *judging]) == rows
        assert len(choosing) == groups.CHOOSING_ROWS
        assert choosing != rows[: groups.CHOOSING_ROWS]
    losses = trial.losses(torch.zeros(2, 3), [2, 0])
    assert losses.tolist() == [[0, 8], [0, 8]]
    assert [row for _, row in Trial.judged[0][:8]] == trial.choosing[2]
    shares = trial.correct(torch.zeros(2, 3), [1, 2], torch.tensor([1, 0]))
    assert shares.tolist() == [1, 0]
    assert [row for _, row in Trial.judged[1]] == [*trial.judging[1], *trial.judging[2]]
