import pytest

from bishare_dsl.show.table import Table, write_tables

TABLE = Table(
    ["spec", "via", "of 100%"], [["a_b", "x | y", "1,234,567"], ["c", "", "2, 4"]], {0, 1}
)


def test_markdown_has_a_row_a_line_and_no_cell_ends_early():
    assert write_tables(["Said.", TABLE], markdown=True).splitlines() == [
        "Said.",
        "",
        "| spec | via | of 100% |",
        "| --- | --- | ---: |",
        "| a_b | x \\| y | 1,234,567 |",
        "| c |  | 2, 4 |",
    ]


def test_nothing_acts_on_a_terminal():
    for markdown in (False, True):
        assert "\x1b" not in write_tables([Table(["a"], [["\x1b[2J"]])], markdown=markdown)


@pytest.mark.parametrize("width", [24, 60])
def test_words_are_wrapped_to_the_terminal(monkeypatch, width):
    monkeypatch.setattr("bishare_dsl.show.table.terminal", lambda *_: width)
    said = "several words " * 9
    text = write_tables([said, TABLE])
    assert max(map(len, text.splitlines())) <= width
    assert text.split("\n\n")[0].split() == said.split()
