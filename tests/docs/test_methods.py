"""docs/methods.md has every spec that ships, and counts it as the plan does."""

import re
from pathlib import Path

import pytest

from bishare_dsl import plan_spec
from bishare_dsl.resources import shipped_specs

TEXT = (Path(__file__).parents[2] / "docs" / "methods.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| [`")
]


@pytest.mark.filterwarnings("ignore::bishare_dsl.api.BishareWarning")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_count_and_rank(row):
    [(name, path)] = re.findall(r"^\[`(\w+)`\]\(\.\./specs/(\w+)\.share\)$", row[0])
    assert name == path
    plan = plan_spec(name, "llama-7b")
    private = f", of which {plan.private:,} private" if plan.is_library else ""
    assert row[3] == f"{plan.trainable:,}{private}"
    ranks = sorted({plan.rows(site.path) for site in plan.sites})
    linear = all(term.linear for term in plan.terms)
    assert row[4] == (" to ".join(map(str, ranks)) if linear else "-")


def test_every_spec_that_ships_has_a_row():
    assert sorted(re.findall(r"\w+", row[0])[0] for row in ROWS) == sorted(shipped_specs())
