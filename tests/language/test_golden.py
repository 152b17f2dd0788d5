from pathlib import Path

import pytest

from bishare_dsl.language import format_text, parse_spec
from bishare_dsl.resources import shipped_specs

GOLDEN = Path(__file__).parent / "golden"
UNFORMATTED = sorted((GOLDEN / "format").glob("*.before.share"))


def test_there_are_golden_files():
    assert len(UNFORMATTED) >= 2


@pytest.mark.parametrize("path", UNFORMATTED, ids=lambda path: path.stem)
def test_formatting_gives_the_layout_it_should(path, check_golden):
    after = format_text(path.read_bytes(), path.name)
    check_golden(path.with_name(path.name.replace("before", "after")), after)
    assert format_text(after) == after
    assert parse_spec(after) == parse_spec(path.read_bytes())


@pytest.mark.parametrize("path", shipped_specs().values(), ids=lambda path: path.stem)
def test_shipped_specs_are_formatted(path):
    assert format_text(path.read_bytes()) == path.read_text(encoding="utf-8")
