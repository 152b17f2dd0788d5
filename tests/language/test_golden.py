"""The layout of texts; `UPDATE_GOLDEN=1 pytest tests/language/test_golden.py` writes what comes out."""

import os
from pathlib import Path

import pytest

from bishare_dsl.language import format_text, parse_spec
from bishare_dsl.resources import shipped_specs

UNFORMATTED = sorted((Path(__file__).parent / "golden" / "format").glob("*.before.share"))


@pytest.mark.parametrize("path", UNFORMATTED, ids=lambda path: path.stem)
def test_formatting_gives_the_layout_it_should(path):
    after = format_text(path.read_bytes(), path.name)
    golden = path.with_name(path.name.replace("before", "after"))
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(after, encoding="utf-8", newline="\n")
    assert golden.read_text(encoding="utf-8") == after
    assert format_text(after) == after
    assert parse_spec(after) == parse_spec(path.read_bytes())


@pytest.mark.parametrize("path", shipped_specs().values(), ids=lambda path: path.stem)
def test_shipped_specs_are_formatted(path):
    assert format_text(path.read_bytes()) == path.read_text(encoding="utf-8")
