"""What bishare answers to mistakes: each input of `inputs` has its answer beside it, as a user sees it.

A `.share` is checked against Llama-7B; each line of a `.cmd` is run as a shell would, among copies of `files`.
`UPDATE_GOLDEN=1 pytest tests/messages` writes the answers. Numbered inputs are those that a first user tried.
"""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

import bishare_dsl.train.prepare  # noqa: F401 - what it imports may speak the first time
from bishare_dsl.cli.main import main
from bishare_dsl.resources import shipped_specs

HERE = Path(__file__).parent
INPUTS = sorted(path for path in (HERE / "inputs").iterdir() if path.suffix in (".share", ".cmd"))


def commands(path):
    """Return the command lines that an input stands for, as lists of words."""
    if path.suffix == ".share":
        return [["check", path.name, "--model", "llama-7b", "--quiet"]]
    return [shlex.split(line)[1:] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
def test_an_answer_reads_as_it_should(path, tmp_path, monkeypatch, capsys):
    shutil.copytree(HERE / "files", tmp_path, dirs_exist_ok=True)
    if path.suffix == ".share":
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    codes = [main(arguments) for arguments in commands(path)]
    out, err = capsys.readouterr()
    shipped = str(shipped_specs()["lora"].parent)
    text = f"{out}{err}exit code {', '.join(map(str, codes))}\n".replace(shipped, "SPECS")
    answer = path.with_suffix(".txt")
    if os.environ.get("UPDATE_GOLDEN"):
        answer.write_text(text, encoding="utf-8", newline="\n")
    assert text == answer.read_text(encoding="utf-8")


def test_each_answer_tells_place_and_a_short_remedy():
    for path in INPUTS:
        text = path.with_suffix(".txt").read_text(encoding="utf-8")
        for answer in re.split(r"^(?=error|warning\[)", text, flags=re.MULTILINE)[1:]:
            # Where no remedy survives a trial, the message says what may stand there.
            said = answer.startswith(("error[BS110]: expected ", "error[BS103]", "error[BS111]"))
            assert said or "  = help: " in answer, path.stem
            assert path.suffix == ".cmd" or " --> " in answer, path.stem
        assert max(map(len, re.findall(r"= help: (.*)", text)), default=0) <= 160, path.stem


def test_nothing_passes_in_silence():
    for path in INPUTS:
        text = path.with_suffix(".txt").read_text(encoding="utf-8")
        assert text != "exit code 0\n", path.stem
        if path.suffix == ".share" and text.endswith("exit code 0\n"):
            assert re.search(r"nothing is shared|are shared|parameter is shared", text), path.stem


def test_each_input_is_kept_with_its_answer():
    assert {path.stem for path in INPUTS} == {p.stem for p in (HERE / "inputs").glob("*.txt")}
