"""``--spec-transform``: a transform in a local file, run because the command line names it."""

import itertools
import json
import subprocess
import sys

import pytest

from bishare_dsl.testing.models import tiny_model

_NUMBER = itertools.count()
SOURCE = '''
import sys
from typing import ClassVar
from bishare_dsl.transforms.shipped.identity import Identity

print("was run", file=sys.stderr)


class Turned(Identity):
    """Identity by another name."""

    name: ClassVar[str] = "{name}"
    title: ClassVar[str] = "Turned"
'''


@pytest.fixture
def name(here):
    """A transform that is new to this process, in a file beside a spec that uses it."""
    name = f"Turned{next(_NUMBER)}"
    (here / "mine.py").write_text(SOURCE.format(name=name))
    share = f"share local  per module  rank 2  via {name}"
    (here / "mine.share").write_text(f"spec mine\ntarget q_proj\n{share}\n")
    return name


FLAG = ("--spec-transform", "mine.py")


def test_a_spec_may_use_it_when_the_command_names_the_file(bishare, here, name):
    run = bishare("check", "mine.share")
    assert run.code == 1
    assert f"`{name}`" in run.out
    assert bishare("check", "mine.share", *FLAG).code == 0
    plan = bishare("plan", "mine.share", "--model", "llama-7b", "--json", *FLAG)
    assert json.loads(plan.out)["problems"] == []


def test_it_goes_from_spec_to_adapter_which_never_runs_it(bishare, here, name):
    tiny_model("llama").save_pretrained(here / "tiny")
    made = bishare("compile", "mine.share", "--model", "tiny", "--out", "adapter", *FLAG)
    assert (made.code, "was run" in made.err) == (0, True)
    assert bishare("inspect", "adapter", *FLAG).code == 0
    (here / "adapter" / "mine.py").write_text((here / "mine.py").read_text())
    # In a process that does not know it yet.
    command = [sys.executable, "-m", "bishare_dsl.cli.main", "inspect", "adapter"]
    said = subprocess.run(command, check=False, capture_output=True, text=True).stderr
    assert "BS619" in said
    assert "--spec-transform" in said
    assert "was run" not in said


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "it is not a file of Python"),
        ("x = 1", "no class in it is a transform"),
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def", "SyntaxError"),
        (SOURCE.format(name="KE"), "the transform name 'KE' is taken"),
    ],
)
def test_a_file_that_is_of_no_use(bishare, here, source, reason):
    if source is not None:
        (here / "bad.py").write_text(source)
    run = bishare("check", "lora", "--spec-transform", "bad.py")
    assert run.code == 2
    assert "error[BS910]: `bad.py` gives no transform: " in run.err
    assert reason in run.err


def test_nothing_is_run_while_a_shell_completes(bishare, here, name, monkeypatch):
    monkeypatch.setenv("_BISHARE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "bishare check --spec-transform mine.py --al")
    monkeypatch.setenv("COMP_CWORD", "4")
    run = bishare()
    assert "--allow-use" in run.out
    assert "was run" not in run.err
