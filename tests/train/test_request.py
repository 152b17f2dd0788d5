from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from bishare_dsl.diagnostics import words
from bishare_dsl.train import TrainError, request
from bishare_dsl.train.request import Settings, argument_types, make_request, read_config

NEEDED = {"spec": "lora", "model": "m", "data": "d.jsonl", "output_dir": "out"}


def config(tmp_path, text):
    (tmp_path / "train.yaml").write_text(text)
    return tmp_path / "train.yaml"


def test_what_is_given_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = config(
        tmp_path,
        "spec: lora\nmodel: m\ndata: d.jsonl\noutput_dir: out\nlearning_rate: 2e-4\nmax_length: 64\n"
        "seed: 3\nparams: {r: 4, alpha: 8}\n",
    )
    found = make_request({"learning_rate": 1e-3, "seed": None, "params": {"r": 2}}, file)
    assert found.arguments == {"learning_rate": 1e-3, "seed": 3}
    assert found.max_length == 64
    assert found.train_on == "completion"
    assert found.params == {"r": 2, "alpha": 8}
    assert (found.spec, found.output_dir, found.resume) == ("lora", Path("out"), None)


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    file = config(tmp_path, "learning_rat: 1\nmodel: m\nload_in_4bi: true\n")
    given = {"learning_rate": "fast", "max_length": 0, "train_on": "prompts", "eval_split": 1.5}
    with pytest.raises(TrainError) as caught:
        make_request(given, file)
    said = str(caught.value)
    assert sorted(problem.code for problem in caught.value.problems) == [
        *["BS730"] * 2, *["BS731"] * 4, *["BS736"] * 3
    ]  # fmt: skip
    for expected in (
        "`learning_rat` is not an argument",
        "did you mean `learning_rate`?",
        "did you mean `load_in_4bit`?",
        "`spec` is missing",
        "`data` is missing",
        "`output_dir` is missing",
        "`learning_rate` cannot be `fast`",
        "`max_length` cannot be `0`: it should be greater than or equal to 2",
        "`train_on` cannot be `prompts`: it should be 'completion' or 'all'",
        "`eval_split` cannot be `1.5`: from 1 on it is a number of rows",
    ):
        assert expected in said


def test_what_an_argument_is_called_elsewhere_is_none_of_ours():
    known = {*argument_types(), *Settings.model_fields, "model", "spec", "output_dir"}
    theirs = {field.name for field in fields(TrainingArguments) if field.init}
    assert argument_types().keys() == theirs - request._NOT_TAKEN
    elsewhere = {word for place, word in words._table() if place == "argument"}
    assert elsewhere
    assert not known & elsewhere


def test_a_split_is_a_part_or_a_number():
    for given, expected in ((0.25, 0.25), (5, 5), (5.0, 5), ("0.1", 0.1), ("7", 7)):
        found = make_request({**NEEDED, "eval_split": given}, None).eval_split
        assert found == expected
        assert type(found) is type(expected)
    with pytest.raises(TrainError, match="BS731"):
        make_request({**NEEDED, "eval_split": 0}, None)
    with pytest.raises(TrainError, match=r"BS731.*held-out rows already"):
        make_request({**NEEDED, "eval_split": 0.1, "eval_data": "d"}, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- a\n", "not a list of"),
        ("{a: ", "line 1, column 5"),
        ("params: 3\n", "not a list of"),
        ("\x00", ""),
        ("a: 'b\n", "found unexpected end of stream at line 2, column 1"),
        ("a: b: c\n", "mapping values are not allowed here"),
        ("a:\n\tb: 1\n", "cannot start any token"),
        ("seed: !!python/object/apply:os.getpid []\n", ""),  # No code in it is run.
    ],
)
def test_files_that_are_no_config(tmp_path, text, reason):
    with pytest.raises(TrainError, match=rf"(?s)BS734.*{reason}"):
        read_config(config(tmp_path, text))


def test_a_config_in_utf_16_is_refused_in_plain_words(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n", encoding="utf-16")
    with pytest.raises(TrainError, match=r"BS734.*it is not UTF-8 \(byte 1\)"):
        read_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("data", [[{"text": "a"}], [1], [["a.jsonl"]]])
def test_rows_in_memory_are_written_into_a_file_first(data):
    with pytest.raises(TrainError, match=r"BS731.*write rows into a file, such as `rows.jsonl`"):
        make_request({**NEEDED, "data": data}, None)
