"""Every row of the table of counts in the note on the paper: what its command counts is what the row says."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from bishare_dsl import plan_spec
from bishare_dsl.cli.main import main
from bishare_dsl.cli.options import _value

PAGE = Path(__file__).parents[2] / "benchmarks" / "notes" / "2026-11-27-paper.md"
ROWS = re.findall(
    r"^\| (.*?) \| (.*?) \| ([\d,]+) \| `(bishare plan .*)` \|$",
    PAGE.read_text("utf-8"),
    re.MULTILINE,
)


# What the compiler has to say of the paper's specs, such as BS350, is not the matter here.
@pytest.mark.filterwarnings("ignore::bishare_dsl.api.BishareWarning")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[3].split()[-2]}")
def test_count(row):
    method, paper, count, command = row
    count = int(count.replace(",", ""))
    words = shlex.split(command)
    file, *options = words[2:]
    params = {}
    for setting in (after for word, after in pairwise(options) if word == "--set"):
        name, _, value = setting.partition("=")
        params[name] = _value(value)
    model = options[options.index("--model") + 1]
    assert plan_spec(file, model, params).trainable == count
    # The ranks in the first column are those of the command.
    if ranks := re.search(r"\{([\d,]+)\}", method):
        said = [params[name] for name in ("r_local", "r_intra", "r_inter")]
        assert said == [int(rank) for rank in ranks[1].split(",")]
    printed = re.findall(r"([\d.]+)M", paper)
    assert not printed or f"{count / 1e6:.2f}" in printed


def test_every_count_of_the_paper_has_a_row():
    assert len(ROWS) == 24


def test_command_line(capsys):
    """The rows are commands as they stand: one is typed."""
    assert main(shlex.split(ROWS[0][3])[1:]) == 0
    assert json.loads(capsys.readouterr().out)["trainable"] == int(ROWS[0][2].replace(",", ""))
