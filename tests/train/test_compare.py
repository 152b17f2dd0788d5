"""Tasks are left out, and each way to learn them has a score of each."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.train.compare import Comparison, compare, interval
from bishare_dsl.train.errors import TrainError, TrainingInterrupted
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.request import make_request
from bishare_dsl.train.run import run

SPEC = """spec small
target q_proj
share core  A per module  B per adapter, module  rank 2
"""
STARTS = ("zero", "nearest", "mean", "mixture", "auto")


def rows(path, limit, *, options=True):
    lines = [
        {"prompt": f"{n}: ", "completion": "yes" if n > limit else "no"}
        | ({"options": ["yes", "no"]} if options else {})
        for n in range(8)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def asked(model_folder, tmp_path):
    def request(count, **more):
        data = {f"m{i}": rows(tmp_path / f"m{i}.jsonl", i + 1) for i in range(count)}
        given = {"spec": SPEC, "model": str(model_folder), "data": data, "output_dir": "."}
        given |= more or {"max_steps": 2, "learning_rate": 1e-2}
        return make_request(given, None)

    return request


@pytest.mark.long
@pytest.mark.parametrize(("count", "left_out", "groups"), [(3, 3, 3), (11, 5, 1)])
def test_few_tasks_are_left_out_in_turn_and_five_of_many_together(asked, count, left_out, groups):
    notes = []
    found = compare(asked(count), Reporter(say=notes.append, warn=notes.append))
    assert "rows stand in several files" in notes[0]
    assert [*found.scores] == [
        "no adapter",
        "a fresh LoRA, r=8",
        "one LoRA for all, as it is",
        "one LoRA for all, trained on",
        *(f"the library, --start {start}" for start in STARTS),
    ]
    assert {len(scores) for scores in found.scores.values()} == {left_out}
    assert all(0 <= score <= 100 for scores in found.scores.values() for score in scores)
    assert found.numbers["no adapter"] == found.numbers["one LoRA for all, as it is"] == 0
    lora = found.numbers["a fresh LoRA, r=8"]
    assert lora == found.numbers["one LoRA for all, trained on"]
    assert 0 < found.numbers["the library, --start auto"] < lora
    assert [note for note in notes if " of " in note and "without" in note][-1].startswith(
        f"{groups} of {groups}: without m"
    )
    assert found.measure == "correct, %"
    assert json.loads(json.dumps(found.as_dict()))["advice"] == found.advice


@pytest.mark.long
def test_rows_without_options_are_judged_by_their_loss(asked, tmp_path):
    request = asked(3)
    for file in request.data.values():
        rows(Path(file), 3, options=False)
    found = compare(request, Reporter(quiet=True))
    assert found.measure == "minus held-out loss"
    assert all(score < 0 for scores in found.scores.values() for score in scores)
    rows(tmp_path / "m0.jsonl", 3)
    with pytest.raises(BishareError, match=r"BS711.*`options` is missing"):
        compare(request, Reporter(quiet=True))


@pytest.mark.long
@pytest.mark.parametrize(
    "more",
    [
        {"format": None},
        {"max_steps": 2, "eval_strategy": "epoch", "eval_delay": 9, "start": "zero"},
    ],
    ids=["defaults", "arguments that compare sets itself"],
)
def test_each_way_has_the_score_that_its_row_says(asked, monkeypatch, more):
    """Without one of Trainer's arguments too: "no adapter" is untrained, and members train no step."""
    found, steps = dict[str, Sequence[Mapping[str, float]]](), dict[str, int]()
    starts = dict[str, str]()

    def noted(request, *arguments, **keywords):
        result, name = run(request, *arguments, **keywords), request.output_dir.name
        found[name], steps[name], starts[name] = result.history, result.steps, request.start
        return result

    monkeypatch.setattr("bishare_dsl.train.compare.run", noted)
    compare(asked(3, **more), Reporter(quiet=True))
    assert not [
        entry for name in ("made", "joint") for entry in found[name] if "eval_loss" in entry
    ]
    assert [steps[start] for start in ("nearest", "mean", "mixture")] == [0, 0, 0]
    for name in ("fresh", "joint-m0", "zero"):
        judged = [entry["step"] for entry in found[name] if "eval_loss" in entry]
        assert judged == [0, steps[name]][name == "zero" :], name
    assert steps["fresh"] > 0
    # Otherwise the library has no record of how tasks should start.
    assert starts["made"] == "auto"


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([1, 2, 3], -0.484, 4.484), ([1, 2, 3, 4], 0.446, 4.554), ([1, 2, 3, 4, 5], 1.037, 4.963)],
)
def test_an_interval_is_that_of_students_t(values, low, high):
    """R prints these for `t.test(1:3)` and so on."""
    assert interval(values) == pytest.approx((low, high), abs=1e-3)


def test_the_advice_is_the_smallest_way_that_nothing_beats():
    scores = {"big": [70.0, 80.0, 75.0], "small": [69.0, 81.0, 74.0], "none": [10.0, 20.0, 15.0]}
    found = Comparison("correct, %", scores, {"big": 1000, "small": 10, "none": 0})
    assert found.advice.startswith("Take small: over 3 tasks")
    said = str(found)
    assert said.index("big") < said.index("small") < said.index("none")
    assert "4,000" in said
    scores["big"] = [70.0, 100.0, 100.0]
    assert "to 100.00 " in str(found)
    scores["big"] = [70.0, 80.0, 75.0]
    scores["none"] = [70.0, 40.0, 75.0]  # Not measurably worse, over three tasks.
    assert found.advice.startswith("Take small:")
    scores["small"] = [30.0, 40.0, 35.0]
    assert found.advice.startswith("Take big:")
    scores["small"] = [80.0, float("nan"), 85.0]  # A loss that diverged.
    assert found.advice.startswith("Take big:")
    assert "nan to nan" in str(found)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"count": 2}, "at least 3 tasks"),
        ({"count": 3, "library": "out/library"}, "name a spec"),
        ({"count": 3, "data": "rows.jsonl"}, "at least 3 tasks"),
        ({"count": 3, "together": True}, "without `--together`"),
        ({"count": 3, "spec": "lora", "params": {"r": 2}}, "shares nothing between tasks"),
    ],
)
def test_what_cannot_be_compared(asked, monkeypatch, more, reason):
    """That is seen before anything trains."""
    monkeypatch.delattr("bishare_dsl.train.compare.run")
    library = {n: more.pop(n) for n in [*more] if n == "library"}
    request = asked(**more).model_copy(update=library)
    with pytest.raises(TrainError, match=rf"BS732(?s:.*){reason}"):
        compare(request, Reporter(quiet=True))


def test_an_interruption_promises_no_checkpoint(asked, monkeypatch):
    """It would be in a folder that is gone."""

    def stop(*_, **__):
        raise TrainingInterrupted(1, 2, Path("gone/checkpoint-1"))

    monkeypatch.setattr("bishare_dsl.train.compare.run", stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        compare(asked(3), Reporter(quiet=True))
    assert type(caught.value) is KeyboardInterrupt
