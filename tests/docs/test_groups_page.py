"""The commands for tasks of several types, as the page has them, on the tiny model and thirty customers.

The types are planted, so that it is known what the commands should find.
"""

import json
import re
import shlex
from pathlib import Path

import pytest

from bishare_dsl.cli.main import main
from bishare_dsl.folder.files import names_in
from bishare_dsl.folder.groups import read_groups
from tests.docs.test_examples import ROOT
from tests.docs.test_pages import save_base

PAGE = (ROOT / "docs" / "few-examples.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## Tasks of several types")[2].partition("\n## ")[0]
COMMANDS = re.findall(r"^\$ bishare (.+)$", SECTION, re.MULTILINE)
ANSWERS = (("yes", "no"), ("no", "yes"), ("yes", "yes"))
"""Of the three types, to small and to large sizes."""


def write(path, kind, first):
    path.parent.mkdir(parents=True, exist_ok=True)
    small, large = ANSWERS[kind]
    rows = [
        {
            "prompt": f"size {n}: ",
            "completion": large if n > 48 else small,
            "options": ["yes", "no"],
        }
        for n in ((37 * number) % 97 for number in range(first, first + 16))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def customers(here):
    save_base("base")
    for number in range(30):
        write(here / "unnamed" / f"customer-{number}.jsonl", number % 3, 7 * number)
    for number, name in enumerate(("support/acme", "support/globex", "sales/hooli")):
        write(here / "typed" / f"{name}.jsonl", number // 2, 7 * number)
    write(here / "newcomer.jsonl", 1, 300)


def run(command, capsys):
    capsys.readouterr()
    code = main(shlex.split(command))
    said = capsys.readouterr()
    assert code == 0, (command, said.err)
    return said.out


@pytest.mark.long
@pytest.mark.usefixtures("customers")
def test_thirty_unnamed_customers_are_scored_grouped_and_joined_by_a_new_one(capsys):
    outputs = {command: run(command, capsys) for command in COMMANDS}
    assert len(outputs) == 6
    by_folder, listed, scores, trained, members, joined = outputs.values()
    assert "named/library#support" in by_folder
    assert "named/library#support      2  acme, globex" in listed
    # The planted number is proposed, by the command that the page shows next.
    assert "3 groups are proposed" in scores
    assert "`--groups 3` trains them" in scores
    assert "out/library#group-3" in trained
    found = read_groups(Path("out/library")).tasks
    for names in found.values():
        assert len(names) == 10
        assert len({int(name.partition("-")[2]) % 3 for name in names}) == 1, names
        assert ", ".join(names) in members
    # The new one has the type of customer 1.
    (own,) = [group for group, names in found.items() if "customer-1" in names]
    record = read_groups(Path("joined/library"))
    assert record.newcomers == {"newcomer": own}
    assert "newcomer" in names_in("joined/library")
    assert re.search(rf"newcomer +{own} +\d", joined)
    assert re.search(r"newcomer +8 +8 +8 +\d +\d", joined)
    # What the page shows has the same form.
    for head in ("groups  score  ahead of 1  error", "task      group      loss  next"):
        assert head in SECTION
        assert head in scores + joined
    for line in ("A score compares", "losses are of one", "right answers on"):
        (shown,) = [text for text in SECTION.splitlines() if text.startswith(line)]
        assert shown in scores + joined
