"""The table of families says what a family gives today."""

import importlib
import json
from pathlib import Path

import pytest

import bishare_dsl
from tests.support.parts import quick

ROOT = Path(bishare_dsl.__file__).parents[1]


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("families")


@pytest.mark.parametrize("family", quick(["llama", "mixtral", "gpt2", "bert", "t5"], ["gpt2"]))
def test_a_row_is_what_is_measured(table, family):
    """How far merging moves outputs is rounding, and another on each machine."""
    found, kept = table.alone(family), table.read()[family]
    assert found.pop("merged") < 1e-5
    kept.pop("merged")
    assert found == kept


def test_the_file_is_of_the_rows(table):
    assert table.TABLE.read_text(encoding="utf-8") == table.table(table.read())


def test_enough_families_adapt(table):
    rows = json.loads(table.RESULTS.read_text())["rows"]
    adapted = [row for row in rows if row.get("sites")]
    assert len(adapted) >= 170
    assert sum(row["sites"] >= 0.8 or bool(row["left"] or row["refused"]) for row in adapted) >= 165
