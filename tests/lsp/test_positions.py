"""Columns are counted as the editor counts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lsprotocol.types import Position, PositionEncodingKind

from bishare_dsl.diagnostics import Source
from bishare_dsl.lsp.document import Document
from bishare_dsl.lsp.positions import Positions
from bishare_dsl.lsp.server import _formatted

UNITS = list(PositionEncodingKind)


@pytest.mark.parametrize(
    ("unit", "column"),
    [
        (PositionEncodingKind.Utf8, 8),
        (PositionEncodingKind.Utf16, 5),
        (PositionEncodingKind.Utf32, 4),
    ],
)
def test_units(unit, column):
    text = "a\n# é😀x"
    position = Positions(Source("s", text), unit).position(text.index("x"))
    assert position == Position(1, column)


@given(st.text(st.sampled_from("aé😀\n ")), st.integers(0, 40), st.sampled_from(UNITS))
def test_a_place_and_back(text, offset, unit):
    positions = Positions(Source("s", text, start=7), unit)
    offset = 7 + min(offset, len(text))
    assert positions.offset(positions.position(offset)) == offset


def test_beyond_the_end():
    positions = Positions(Source("s", "ab\ncd"))
    assert positions.offset(Position(0, 99)) == 2
    assert positions.offset(Position(9, 0)) == 5


def test_formatting_replaces_a_whole_text_whose_lines_end_in_carriage_returns():
    document = Document("spec s\rtarget q_proj\rshare a per module rank 8\r", "<text>")
    (edit,) = _formatted(document)
    assert edit.range.start.line == 0
    assert edit.range.end.line > 3
