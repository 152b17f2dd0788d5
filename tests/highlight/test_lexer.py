import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.token import Error, Token

from bishare_dsl.highlight.lexer import ShareLexer
from bishare_dsl.resources import shipped_specs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", shipped_specs())
def test_shipped_specs_are_highlighted_whole(name):
    text = shipped_specs()[name].read_text(encoding="utf-8")
    found = list(ShareLexer().get_tokens_unprocessed(text))
    assert "".join(piece for _, _, piece in found) == text
    assert [start for start, _, _ in found] == [
        sum(len(piece) for _, _, piece in found[:i]) for i in range(len(found))
    ]
    assert Error not in {kind for _, kind, _ in found}
    assert Token.Name.Class in {kind for _, kind, _ in found}


def test_a_page_gets_classes():
    html = highlight("spec s  # note", ShareLexer(), HtmlFormatter())
    assert '<span class="kd">spec</span>' in html
    assert '<span class="c1"># note</span>' in html


def test_pygments_finds_it_by_its_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [(name, value)] = project["entry-points"]["pygments.lexers"].items()
    assert EntryPoint(name, value, "pygments.lexers").load() is ShareLexer
