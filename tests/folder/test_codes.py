"""The examples of the codes, which the docs show: each is run, and each says what it is an example of."""

import pytest

from bishare_dsl.resources import shipped_specs
from tests.diagnostics.pages import run, shown

SHOWN = shown("console", "BS6")


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specs").mkdir()
    for path in shipped_specs().values():
        (tmp_path / "specs" / path.name).write_text(path.read_text())


@pytest.mark.parametrize("page", [*SHOWN, *shown("console", "BS7")], ids=lambda page: page.code)
def test_what_is_wrong_is_found(page, capsys):
    assert run(page.bad) in (1, 2)
    assert f"[{page.code}]" in capsys.readouterr().err


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.code)
def test_what_is_right_works(page):
    assert run(page.good) == 0
