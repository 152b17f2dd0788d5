import os
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def golden(path: Path, text: str) -> None:
    """Compare with a file; `UPDATE_GOLDEN=1 pytest tests/language` writes it instead."""
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8", newline="\n")
    assert path.read_text(encoding="utf-8") == text


@pytest.fixture
def check_golden():
    return golden
