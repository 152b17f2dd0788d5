"""The examples of the codes, which the docs show: each has the problem that it is an example of."""

import shlex

import pytest

from bishare_dsl.diagnostics.codes import registry

SHOWN = [code for code in registry().values() if "BS730" <= code.code <= "BS799" and code.shell]


@pytest.mark.parametrize("code", SHOWN, ids=lambda code: code.code)
def test_what_is_wrong_is_found(code, tmp_path, monkeypatch, capsys):
    from bishare_dsl.cli.main import main

    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(code.bad)
    assert program == "bishare"
    assert main(arguments) == 2
    assert f"error[{code.code}]" in capsys.readouterr().err
