"""The examples of the codes, which the docs show: each has the problem that it is an example of."""

import pytest

from tests.diagnostics.pages import run, shown


@pytest.mark.parametrize("page", shown("console", "BS7"), ids=lambda page: page.code)
def test_what_is_wrong_is_found(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(page.bad) == 2
    assert f"error[{page.code}]" in capsys.readouterr().err
