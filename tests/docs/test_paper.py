"""Every count on the page of the paper is what its command prints, and rounds to what the paper prints."""

import json
import re

import pytest

from bishare_dsl.cli.main import main
from tests.docs.test_examples import ROOT

PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\| (?P<method>[^|]+) \| (?P<paper>[^|]+) \| (?P<count>[\d,]+) \| `(?P<command>bishare plan [^`]+)` \|$",
    re.MULTILINE,
)
ROWS = [match.groupdict() for match in ROW.finditer(PAGE)]


def test_the_page_has_every_row_of_tables_2_3_7_and_8():
    methods = [row["method"].split(",")[0].split(" ")[0] for row in ROWS]
    assert {name: methods.count(name) for name in methods} == {
        "LoRA": 3,
        "VeRA": 3,
        "VB-LoRA": 3,
        "SS": 3,
        "GT": 5,
        "KE": 7,
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["command"].removeprefix("bishare plan "))
def test_a_count_is_what_its_command_prints(row, capsys):
    assert main([*row["command"].split()[1:], "--json"]) == 0
    trainable = json.loads(capsys.readouterr().out)["trainable"]
    assert f"{trainable:,}" == row["count"]
    printed = re.match(r"([\d.]+)M", row["paper"])
    if printed is None:
        assert row["paper"] == "not printed"
    else:
        assert f"{trainable / 1e6:.2f}" == printed[1]


def test_figure_6_is_what_the_plan_says(capsys):
    counts = {}
    for spec in ("lora", "bishare_ke"):
        words = [
            "plan",
            spec,
            "--model",
            "llama-7b",
            "--adapters",
            "200",
            "--memory",
            "80GB",
            "--json",
        ]
        assert main(words) == 0
        counts[spec] = json.loads(capsys.readouterr().out)
    text = json.dumps(counts)
    assert "2371" in text
    assert "9087" in text
