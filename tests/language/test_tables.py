import json
import subprocess
import sys

from lark import Lark

from bishare_dsl.language.parse import Problems, decode, parse
from bishare_dsl.language.tables import build, serialised, tables
from bishare_dsl.resources import grammar, shipped_specs


def test_the_stored_tables_are_those_of_the_grammar():
    built = serialised(build(grammar("share.lark").read_bytes()))
    assert json.loads(built) == json.loads(grammar("share.json").read_text()), (
        "run `python -m bishare_dsl.language.tables`"
    )


def test_stale_tables_are_built_anew(monkeypatch, tmp_path):
    changed = grammar("share.lark").read_bytes() + b"\n// changed\n"
    (tmp_path / "share.lark").write_bytes(changed)
    (tmp_path / "share.json").write_bytes(grammar("share.json").read_bytes())
    stored = tables()
    monkeypatch.setattr("bishare_dsl.language.tables.grammar", lambda name: tmp_path / name)
    anew = tables.__wrapped__()
    assert anew.grammar != stored.grammar
    assert anew.states == stored.states


def test_lark_reads_the_shipped_specs_word_for_word_as_we_do():
    lark = Lark(grammar("share.lark").read_text(), parser="lalr", lexer="basic")
    for path in shipped_specs().values():
        text = path.read_text(encoding="utf-8")
        problems = Problems()
        ours = parse(decode(text, path.name), problems)
        assert problems.count == 0
        assert [(t.type, str(t)) for t in lark.lex(text)] == [
            (t.kind, t.text) for t in ours.tokens[:-1]
        ]
        assert len(lark.parse(text).children) == len(ours.statements)


def test_reading_imports_neither_lark_nor_torch():
    code = (
        "import sys; from bishare_dsl.language import read_file; "
        f"read_file({str(shipped_specs()['lora'])!r}); "
        "sys.exit(any(name in sys.modules for name in ('lark', 'torch', 'hypothesis')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
