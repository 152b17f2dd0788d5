"""The examples of the codes, which the docs show: each is run, and each says what it is an example of."""

import shlex
from pathlib import Path

import pytest

from bishare_dsl.cli.main import main
from bishare_dsl.diagnostics import Code
from bishare_dsl.diagnostics.codes import registry
from bishare_dsl.resources import shipped_specs

CODES = [code for code in registry().values() if code.code.startswith("BS6")]
SHOWN = [code for code in CODES if code.shell]


def run(commands: str) -> int:
    """Run commands as a shell does, until one fails; the last one's exit code."""
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "bishare"
        if code := main(arguments):
            return code
    return 0


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specs").mkdir()
    for path in shipped_specs().values():
        (tmp_path / "specs" / path.name).write_text(path.read_text())


@pytest.mark.parametrize("code", SHOWN, ids=lambda code: code.code)
def test_what_is_wrong_is_found(code: Code, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(code.bad) in (1, 2)
    assert f"[{code.code}]" in capsys.readouterr().err


@pytest.mark.parametrize("code", SHOWN, ids=lambda code: code.code)
def test_what_is_right_works(code: Code) -> None:
    assert run(code.good) == 0
