"""Data sets of the Hub. It is played by a folder, and by a look-up that does what a test wants."""

import json

import datasets
import pytest

from bishare_dsl.train.data.load import load_rows

ROWS = [{"text": f"row {i}", "n": i} for i in range(1205)]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that has ``owner/set``, with two splits."""
    import huggingface_hub

    folder = tmp_path / "set"
    folder.mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[:3])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    load = datasets.load_dataset

    def loading(name, subset, split):
        assert name == "owner/set"
        return load(str(folder), subset, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", loading)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # A test that wants no answer takes this one away.
    monkeypatch.setattr(type(huggingface_hub.get_session()), "head", lambda *_, **__: None)
    return folder


@pytest.mark.usefixtures("hub")
def test_rows_of_a_split():
    rows = load_rows("owner/set")
    assert [*rows.table] == ROWS
    assert rows.name == "owner/set (train)"
    assert rows.places[1203] == "owner/set (train), row 1204"
    test = load_rows("owner/set", split="test")
    assert [*test.table] == ROWS[:3]
    assert len(load_rows("owner/set", split="train[:10]")) == 10


def test_a_set_that_cannot_be_read(hub, problems):
    for part, said in ({"split": "tset"}, "tset"), ({"subset": "no"}, "no"):
        [problem] = problems(load_rows, "owner/set", **part)
        assert problem.code == "BS703"
        assert f'"{said}"' in problem.message or f"'{said}'" in problem.message
    (hub / "train.jsonl").write_text('{"text": "a"}\n{"text": ')
    [problem] = problems(load_rows, "owner/set")
    assert problem.code == "BS703"


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    "error",
    [
        datasets.exceptions.DatasetNotFoundError("Dataset 'owner/other' doesn't exist"),
        ConnectionError("Couldn't reach 'owner/other' on the Hub"),
    ],
)
def test_a_hub_that_says_no_or_nothing(monkeypatch, problems, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    [problem] = problems(load_rows, "owner/other")
    assert problem.code == "BS703"
    assert str(error) in problem.message
