import os
from pathlib import Path

import pytest

from bishare_dsl.testing.models import tiny_model

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def check_golden():
    """Compares with a file; `UPDATE_GOLDEN=1 pytest tests/cli` writes it instead."""

    def check(name, text):
        path = GOLDEN / name
        if os.environ.get("UPDATE_GOLDEN"):
            path.write_text(text, encoding="utf-8", newline="\n")
        assert path.read_text(encoding="utf-8") == text

    return check


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny Llama with weights, saved."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_model("llama").save_pretrained(folder)
    return folder
