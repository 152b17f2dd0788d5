import pytest

from bishare_dsl.show.table import Table, folded, some_lines, some_names, write_tables

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


def test_equal_rows_of_a_long_table_are_one_row():
    rows = [[f"s{i}", i % 2, "2 x 4"] for i in range(1000)]
    table = folded(Table(["share", "pools", "shape"], rows))
    assert table.rows == [["s0 and 499 like it", 0, "2 x 4"], ["s1 and 499 like it", 1, "2 x 4"]]
    short = Table(["share", "pools", "shape"], rows[:40])
    assert folded(short) is short


def test_the_end_of_a_table_of_unlike_rows_is_a_count():
    table = folded(Table(["share", "pools"], [[f"s{i}", i] for i in range(1000)]))
    assert len(table.rows) == 41
    assert table.rows[39] == ["s39", 39]
    assert table.rows[40] == ["960 more (--json has all)", ""]


def test_many_names_and_lines_are_counted():
    assert some_names([f"s{i}" for i in range(10)]).endswith("s8, s9")
    assert some_names([f"s{i}" for i in range(1000)]).endswith("s8, s9 and 990 more")
    assert some_lines(["a"] * 40) == ["a"] * 40
    assert some_lines(["a"] * 100)[40:] == ["60 more lines (--json has all)"]
