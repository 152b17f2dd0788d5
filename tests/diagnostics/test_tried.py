"""Advice that is tried: what it names is there, and what it writes is read."""

import pytest

from bishare_dsl.diagnostics.tried import json_meant, names_meant, near_path, value_meant

SETS = [("prompt", "completion"), ("text",)]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (value_meant("1,000", int), "write `1000`"),
        (value_meant("“8”", int), "write `8`"),
        *((value_meant(value, int), None) for value in ("20%", "8", "ten")),
        (names_meant(["Prompt", "answer", "id"], SETS), "call `Prompt` `prompt` and call `answer` `completion`"),
        (names_meant(["body"], SETS), "call `body` `text`"),
        (names_meant(["answer"], SETS), None),
        (json_meant("{'a': None}"), "that is Python: `json.dumps(row)` writes JSON"),
        (json_meant('{"a": 1,, "b": “2”}'), None),
    ],
)  # fmt: skip
def test_what_is_advised_works(found, said):
    assert found == said


def test_a_path_is_named_if_it_is_there_and_fits(tmp_path):
    for name in ("mine.share", "acme.share", "acne.txt"):
        (tmp_path / name).touch()
    for asked, meant in (("mine", "mine.share"), ("acm.share", "acme.share"), ("else", None)):
        help = near_path(str(tmp_path / asked), lambda path: path.endswith(".share"))
        assert help == (meant and f"did you mean `{tmp_path / meant}`?")
    assert near_path(str(tmp_path / "none" / "mine"), bool) is None
