"""No text, and no place in it, is too much for an answer."""

from hypothesis import given
from hypothesis import strategies as st
from lsprotocol.types import Position

from bishare_dsl.diagnostics import Span
from bishare_dsl.lsp.complete import completions
from bishare_dsl.lsp.diagnose import diagnostics
from bishare_dsl.lsp.document import Document
from bishare_dsl.lsp.remedies import code_actions
from bishare_dsl.resources import shipped_specs

PIECES = st.sampled_from(
    [
        *("# model: llama-7b\n", "# model: x\n", "spec s\n", 'use "lora"\n', "param r = ", "let l = "),
        *("target ", "share a ", "where ", "per ", "rank ", "via ", "KE(size = ", "init A ", "freeze "),
        *("q_proj ", "layer ", "model ", "r ", "4 ", ", ", "= ", "== ", "in ", "0..3 ", "{", "}", "(", ")"),
        *('"', '"é😀" ', "replace ", "match kind ", "\n", "\r\n", "#", "alpha 2\n", "start nonzero ", "\x00"),
    ]
)  # fmt: skip


def answer_all(document, place):
    whole = document.positions.range(Span(document.source.start, document.source.start + 10**6))
    assert all(item.text_edit for item in completions(document, place))
    assert all(found.range.start <= found.range.end for found in diagnostics(document))
    code_actions(document, "file:///x.share", whole)


@given(st.lists(PIECES, max_size=25).map("".join), st.integers(0, 8), st.integers(0, 30))
def test_any_text(text, line, column):
    answer_all(Document(text, "/nowhere/x.share"), Position(line, column))


@given(st.sampled_from(sorted(shipped_specs())), st.data())
def test_a_spec_that_is_being_written(name, data):
    path = shipped_specs()[name]
    text = "# model: llama-7b\n" + path.read_text(encoding="utf-8")
    end = data.draw(st.integers(0, len(text)))
    document = Document(text[:end], str(path))
    answer_all(document, document.positions.position(end))
