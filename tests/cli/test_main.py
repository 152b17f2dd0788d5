"""What holds for every command: help, exit codes, streams, colours, and that no traceback gets out."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bishare_dsl.cli import main as cli
from bishare_dsl.cli.main import COMMANDS
from bishare_dsl.diagnostics.codes import registry
from bishare_dsl.resources import error_index, error_page
from bishare_dsl.version import __version__


@pytest.mark.parametrize(
    "command",
    [
        "fit loop --spec lora --model llama-7b --out o",
        "check lora --spec-transform loop",
        "import loop --out o",
        "inspect loop",
        "train lora --model loop --data loop --output_dir loop",
        "train --resume loop",
    ],
)
def test_a_link_to_itself_is_an_error_with_a_code(bishare, here, command):
    (here / "loop").symlink_to("loop")
    run = bishare(*command.split())
    assert run.code in (1, 2)
    assert "error[BS" in run.err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(bishare, command):
    run = bishare(*command.split(), "--help")
    assert (run.code, run.err) == (0, "")
    assert "Examples:\n" in run.out
    assert bishare(*command.split(), "-h").out == run.out


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("analyse", "`python examples/redundancy.py"),
        ("models", "`bishare specs` lists the models"),
        ("export", "it is `bishare convert"),
        ("import", "it is `bishare convert"),
        ("generate", "generate text in Python"),
    ],
)
def test_a_command_that_went_names_what_does_its_work(bishare, command, said):
    run = bishare(command, "folder")
    assert (run.code, run.out) == (2, "")
    assert f"error[BS901]: no such command `{command}`: {said}" in run.err


def test_without_a_command_the_help_is_shown_and_it_is_wrong_usage(bishare):
    run = bishare()
    assert (run.code, run.out, run.err) == (2, "", bishare("--help").out)


def test_the_version_is_told_and_the_package_is_a_command(bishare):
    words = [sys.executable, "-m", "bishare_dsl", "--version"]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    assert run.stdout == bishare("--version").out == f"bishare {__version__}\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RuntimeError("two\nlines"), 70, "error: unexpected RuntimeError: two lines\n  = help: "),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (MemoryError(), 70, "error: out of memory"),
    ],
)
def test_no_traceback_gets_out_unless_it_is_asked_for(
    bishare, capsys, monkeypatch, error, code, said
):
    def fail(*_):
        raise error

    monkeypatch.delenv("BISHARE_DEBUG", raising=False)
    monkeypatch.setattr("bishare_dsl.cli.plan.plan_of_any", fail)
    run = bishare("plan", "lora", "--model", "llama-7b", "--json")
    assert (run.code, run.out) == (code, "")
    assert run.err.startswith(said)
    monkeypatch.setenv("BISHARE_DEBUG", "1")
    assert cli.main(["plan", "lora", "--model", "llama-7b"]) == code
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, Exception)


def test_colours_on_a_terminal_only_and_not_against_the_user(bishare, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert "\033" not in bishare("check", "nowhere").out
    monkeypatch.setattr("_pytest.capture.CaptureIO.isatty", lambda _: True, raising=False)
    assert bishare("check", "nowhere").out.startswith("\033[1;31merror[BS902]:\033[0m ")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in bishare("check", "nowhere").out


@pytest.mark.parametrize("code", registry())
def test_explain(bishare, code):
    run = bishare("explain", code.lower())
    assert run.code == 0
    known = registry()[code]
    if error_page(code).is_file():
        assert run.out == error_page(code).read_text(encoding="utf-8")
    else:
        line = f"{code}, {error_index()[code][0]}: {known.message}. {known.remedy or ''}"
        assert run.out == f"{line.rstrip()}\n"


@pytest.mark.parametrize(
    ("typed", "offered"), [("bishare ch", "check"), ("bishare train --bf16 --eval", "--eval_split")]
)
def test_completion_completes(bishare, monkeypatch, typed, offered):
    monkeypatch.setenv("_BISHARE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    assert f"plain,{offered}\n" in bishare().out


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"completion", "lsp"}))
def test_every_command_has_its_answer_for_machines(bishare, command):
    assert "--json" in bishare(command, "--help").out


def test_what_is_experimental_is_listed_in_one_place():
    page = (Path(__file__).parents[2] / "docs/guarantees.md").read_text("utf-8")
    listed = re.findall(r"^- `bishare (\w+)`", page.partition("## Experimental")[2], re.MULTILINE)
    assert {*listed} == {name for name, line in COMMANDS.items() if "(experimental)" in line}
