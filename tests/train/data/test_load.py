"""Files of rows: what is read, where each row is, and what is wrong with those that cannot be read."""

import csv
import io
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bishare_dsl.train.data.load import load_rows

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, rows[0], quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_parquet(rows):
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


KINDS = {"json": json.dumps, "jsonl": as_lines, "csv": as_csv, "parquet": as_parquet}


@given(
    rows=st.lists(
        st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}), min_size=1, max_size=5
    )
)
def test_every_kind_of_file_gives_the_same_rows(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for ending, written in KINDS.items():
        path = write(folder / f"rows.{ending}", written(rows))
        assert load_rows(path).table == rows, ending


def test_lists_in_parquet_are_lists(tmp_path):
    rows = [{"messages": [{"role": "user", "content": str(i)}]} for i in range(2500)]
    read = load_rows(write(tmp_path / "r.parquet", as_parquet(rows)))
    assert read.table == rows
    for index in random.Random(0).sample(range(2500), 9):
        assert read.table[index] == rows[index]
    assert read.places[2041] == f"{tmp_path}/r.parquet, row 2042"


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("r.json", '[{"text": "a"},\n{"text": "b"}]', [", row 1", ", row 2"]),
        ("r.json", '{"data": [{"text": "a"}, {"text": "b"}]}', [", row 1", ", row 2"]),
        ("r.json", '{"text": "a"}\n{"text": "b"}\n', [":1", ":2"]),  # JSON Lines all the same.
        ("r.jsonl", '{"text": "a"}\n\n  \n{"text": "b"}', [":1", ":4"]),
        ("r.jsonl", '{\n "text": "a"\n}\n\n{"text":\n"b"}', [":1", ":5"]),  # As `jq` writes.
        ("r.jsonl", '{"text": "a"}{"text": "b"}', [":1", ":1"]),
        ("r.jsonl", '[{"text": "a"},\n{"text": "b"}]', [", row 1", ", row 2"]),
        ("r.NDJSON", '\ufeff{"text": "a"}\r\n{"text": "b"}\r\n', [":1", ":2"]),
        ("r.csv", "\ufefftext\na\n\nb\n", [":2", ":4"]),
        ("r.csv", 'text,x\r\n"a",1\r\nb,"2\r\n3"\r\n', [":2", ":4"]),
        ("r.csv", "text;x\na;b, c\nb;d\n", [":2", ":3"]),
        ("r.csv", "text\tx\na\tb, c; d\nb\td\n", [":2", ":3"]),
        ("r.json", '{"id": 1, "rows": [{"text": "a"}, {"text": "b"}]}', [", row 1", ", row 2"]),
    ],
)
def test_a_row_knows_where_it_is(name, content, places, tmp_path):
    path = write(tmp_path / name, content)
    rows = load_rows(path)
    assert [row["text"] for row in rows.table] == ["a", "b"]
    assert rows.places == [f"{path}{place}" for place in places]
    assert rows.name == str(path)
    part = rows.select([1])
    assert (len(part), part.table[0]["text"], part.places[0]) == (1, "b", f"{path}{places[1]}")


def test_a_line_ends_at_a_line_break_only(tmp_path):
    rows = load_rows(write(tmp_path / "r.jsonl", '{"text": "a\u2028b\x85c"}\n'))
    assert rows.table[0]["text"] == "a\u2028b\x85c"


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        # The file as a whole.
        ("r.txt", "a", "BS704", "r.txt` is not a kind"),
        ("r.json", "[1, 2", "BS705", "r.json` cannot be read: the file ends within this row: write the row whole"),
        ("r.json", '[1 2]', "BS705", "Expecting ',' delimiter before `2]`"),
        ("r.json", '[{"a": 1}]'.encode("utf-16"), "BS705", "it is UTF-16: save it as UTF-8"),
        ("r.json", "[" * 100_000, "BS705", "nested too deep"),
        ("r.json", '{"version": 2, "text": [{"text": "a"}]}', "BS705", "not a list of rows: write its rows as a list"),
        ("r.json", b'[\n{"text": "\xff"}]', "BS705", "it is not UTF-8 (byte 13): save the file as UTF-8"),
        ("r.parquet", b"PAR1nothing", "BS705", "r.parquet` cannot be read"),
        ("r.jsonl", b"PAR1nothing", "BS705", "it is a Parquet file"),
        ("r.csv", b"PK\x03\x04nothing", "BS705", "it is a zip file, as .xlsx is too"),
        ("r.jsonl", b"\x1f\x8bnothing", "BS705", "packed by gzip"),
        ("r.jsonl.gz", b"\x1f\x8bnothing", "BS704", "unpack it first"),
        ("r.tsv", "text\n", "BS704", "name it `.csv`"),
        ("r.jsonl", "version https://git-lfs.github.com/spec/v1\nsize 3\n", "BS705", "`git lfs pull` fetches the file"),
        ("r.jsonl", "<!DOCTYPE html>", "BS705", "a page of HTML"),
        ("r.csv", b"text\na\n\xff\n", "BS705", "it is not UTF-8"),
        # Rows. What is advised would be read.
        ("r.json", '[{"text": "a"}, 3]', "BS706", "r.json, row 2: it is not an object"),
        ("r.jsonl", '"{}"\n', "BS706", "r.jsonl:1: it is not an object: write the row without quotes around it"),
        ("r.jsonl", '["fox", "a"]\n{"a": 1}', "BS706", "it is not an object: write an object, such as"),
        ("r.jsonl", '{"text": "a"}\n{"text": \n', "BS706", "r.jsonl:2: the file ends within this row: write"),
        ("r.jsonl", '{"text": "a"}\n{"text": "b', "BS706", "r.jsonl:2: the file ends within this row: write"),
        ("r.jsonl", "{\n", "BS706", "r.jsonl:1: the file ends within this row"),
        ("r.jsonl", "{'text': 'a'}", "BS706", "before `'text': 'a'}`: that is Python: `json.dumps(row)`"),
        ("r.jsonl", '{"text": "a\nb"}\n{"text": "c"}', "BS706", "r.jsonl:1: Invalid control character before"),
        ("r.jsonl", '{"text": "a\tb"}\n', "BS706", "in a text, a line break is written `\\n` and a tab `\\t`"),
        ("r.json", '[{"text": "a\nb"}]\n', "BS705", "in a text, a line break is written `\\n`"),
        ("r.jsonl", '{"a": 1},\n', "BS706", "r.jsonl:1: Expecting value before `,`: write no comma after a row"),
        ("r.jsonl", '{"a": 1, "a": 2}\n', "BS706", "r.jsonl:1: a column stands twice: take one of the two out"),
        ("r.jsonl", '{"a": [1],}\n', "BS706", "write no comma before `}` or `]`"),
        ("r.jsonl", '{“a”: “b”}\n', "BS706", 'write straight quotes: `"`'),
        ("r.jsonl", '{"a": "C:\\x"}\n', "BS706", "in a text, a backslash is written"),
        ("r.jsonl", '{"a": True}\n', "BS706", "before `True}`: JSON writes `true`"),
        ("r.jsonl", '# rows\n{"a": 1}\n', "BS706", "r.jsonl:1: Expecting value before `# rows"),
        ("r.csv", "text,x\na,1\nb\n", "BS706", "r.csv:3: line 1 names 2 columns, and this row has 1: give"),
        ("r.csv", "text,x\na,1\nb,c,d\n", "BS706", "r.csv:3: line 1 names 2 columns, and this row has 3: quote a cell with ','"),
        ("r.csv", 'text\na\n"b\n', "BS706", "r.csv:3: unexpected end of data: in a cell in quotes"),
        # No rows.
        ("r.json", "[]", "BS707", "has no rows"),
        ("r.csv", "", "BS707", "has no rows"),
        ("r.parquet", as_parquet([{"text": "a"}][:0]), "BS707", "has no rows"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read(name, content, code, said, tmp_path, problems):
    [problem] = problems(load_rows, write(tmp_path / name, content))
    assert problem.code == code
    assert said in f"{problem.message}: {problem.help}"
    assert name in problem.message


def test_the_first_bad_rows_are_named_and_the_rest_counted(tmp_path, problems):
    bad = "".join(f'{{"text": "{i}"\n' if i % 2 else '{"text": "a"}\n' for i in range(2000))
    found = problems(load_rows, write(tmp_path / "r.jsonl", bad))
    assert [p.code for p in found] == ["BS706"] * 5 + ["BS717"]
    assert [p.message.split(":")[1] for p in found[:5]] == ["2", "4", "6", "8", "10"]
    assert found[5].message.startswith("995 more")
    assert found[5].severity == "note"


def test_no_such_file(tmp_path, problems, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    write(tmp_path / "rows.csv", "text\na\n")
    # `csv` would be all CSV files of this folder, were it left to `datasets`.
    for source in ("no.jsonl", "data/no.jsonl", "csv", tmp_path / "no", "a/b/c", "folder", ""):
        [problem] = problems(load_rows, source)
        assert problem.code == "BS701"
    assert "not its folder" in problem.help
    (tmp_path / "near").mkdir()
    write(tmp_path / "near" / "acme.jsonl", "{}")
    write(tmp_path / "near" / "acm.txt", "")
    for source, said in (
        ("near/acm.jsonl", "did you mean `near/acme.jsonl`?"),
        (tmp_path / "near" / "acme.json", f"did you mean `{tmp_path}/near/acme.jsonl`?"),
        ("near/*.jsonl", "a folder's name stands for all of its files"),
        ("a.jsonl,b.jsonl", "give each file its own `--data`"),
    ):
        [problem] = problems(load_rows, source)
        assert said in problem.help


def test_a_file_that_may_not_be_opened(tmp_path, problems, monkeypatch):
    path = write(tmp_path / "r.jsonl", "{}")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    [problem] = problems(load_rows, path)
    assert (problem.code, problem.message) == (
        "BS705",
        f"`{path}` cannot be read: Permission denied",
    )
