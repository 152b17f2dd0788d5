from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bishare_dsl.cli.main import main
from bishare_dsl.testing.models import tiny_model

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str


@pytest.fixture
def bishare(monkeypatch, capsys) -> Callable[..., Run]:
    """Runs a command as the console script does, in this process."""

    def run(*arguments: object, stdin: bytes = b"") -> Run:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Run(code, out, err)

    return run


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def check_golden() -> Callable[[str, str], None]:
    """Compares with a file; `UPDATE_GOLDEN=1 pytest tests/cli` writes it instead."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("UPDATE_GOLDEN"):
            path.write_text(text, encoding="utf-8", newline="\n")
        assert path.read_text(encoding="utf-8") == text

    return check


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny Llama with weights, saved."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_model("llama").save_pretrained(folder)
    return folder
