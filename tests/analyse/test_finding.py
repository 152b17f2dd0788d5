"""What an analysis says first."""

from dataclasses import replace

from bishare_dsl.analyse.analysis import analyse
from bishare_dsl.analyse.finding import finding
from bishare_dsl.analyse.tables import by_gain
from tests.analyse.conftest import BY_LAYER, INDEPENDENT, TARGET

BY_KIND = f"spec planted {TARGET} share one A per kind B per module rank 4"


def test_the_key_that_was_planted_stands_out(analysed):
    said = finding([analysed(BY_LAYER, "a")])
    assert said.startswith("One A per `layer` stands out: it keeps ")
    assert "This run cannot tell the task from the seed" in said
    assert finding([analysed(BY_KIND, "c", 2)]).startswith("One A per `kind` stands out")


def test_nothing_stands_out_of_independent_updates(analysed):
    said = finding([analysed(INDEPENDENT)])
    assert said.startswith("No key stands out")
    assert "This run cannot tell who should share." in said


def test_two_runs_tell_if_they_agree(analysed):
    runs = [analysed(BY_LAYER, name, i) for i, name in enumerate("ab")]
    assert "These runs can tell: it stands out in 2 of 2." in finding(runs)
    other = analysed(BY_KIND, "c", 2)
    assert "These runs cannot tell: it stands out in 1 of 2." in finding([runs[0], other])


def test_a_start_that_is_not_known_is_told(read):
    adapter = replace(read(BY_LAYER), starts_known=False)
    assert finding([analyse(adapter)]).endswith("hide what A shares.")


def test_keys_with_equal_groups_are_one_row(analysed):
    analysis = analysed(INDEPENDENT)
    # Eight layers, two of them in each group of `layer // 4`.
    rows = {(row.joint.key, row.joint.role) for row in by_gain(analysis)}
    assert ("layer // 8 = model", "A") in rows
    assert len(rows) < len(analysis.joint)
    keys = [key for name, role in rows if role == "A" for key in name.split(" = ")]
    assert sorted(keys) == sorted(row.joint.key for row in analysis.joint if row.joint.role == "A")
