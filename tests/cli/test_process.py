"""What only a process of its own shows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bishare_dsl.cli.main import main

PROGRAM = "import sys; from bishare_dsl.cli.main import main; sys.exit(main())"


def run(*arguments, program=PROGRAM, **settings):
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, text=True, check=False, **settings)


def test_a_terminal_of_a_few_columns_is_wide_enough():
    found = run("specs", env={**os.environ, "COLUMNS": "4"})
    assert found.returncode == 0, found.stderr


def test_a_reader_that_has_seen_enough_is_no_error():
    words = ("plan", "bishare_ke", "--model", "llama-3.1-405b", "--json")
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Unbuffered, Python takes a write that was cut short for a whole one.
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    ) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_told_in_one_line():
    with Path("/dev/full").open("w") as full:
        result = run("plan", "lora", "--model", "llama-7b", stdout=full)
    assert result.returncode == 2
    assert result.stderr == "error: cannot write the result: No space left on device\n"


def test_closed_streams_are_no_error():
    program = "import sys; sys.stdout = sys.stderr = None\n" + PROGRAM
    assert run("check", "lora", "--json", program=program).returncode == 0
    assert run("check", "nowhere", program=program).returncode == 2


@pytest.mark.parametrize("command", ["check", "fmt", "lsp"])
def test_a_closed_standard_input_is_an_empty_one(command):
    """As under cron, and in containers."""
    words = [command] if command == "lsp" else [command, "-"]
    found = run(*words, preexec_fn=lambda: os.close(0))
    assert found.returncode == (0 if command == "lsp" else 1), found.stderr
    assert "unexpected" not in found.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_notes_that_cannot_be_written_stop_no_work(tmp_path):
    """On a full disk, and when their reader has ended: `fmt` of several files tells how many have changed."""
    reader, writer = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("w") as full, os.fdopen(writer, "w") as ended:
        for stream in (full, ended):
            for name in ("a.share", "b.share"):
                (tmp_path / name).write_text("spec  s\ntarget q_proj\nshare x   per kind rank 4\n")
            found = run("fmt", "a.share", "b.share", cwd=tmp_path, stderr=stream)
            assert found.returncode == 0
            assert "spec s\n" in (tmp_path / "b.share").read_text()


def test_characters_that_the_terminal_lacks_are_written_as_codes(tmp_path):
    (tmp_path / "bad.share").write_text("spec ü\n", encoding="utf-8")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = run("check", "bad.share", cwd=tmp_path, env=environment)
    assert result.returncode == 1
    assert "\\xfc" in result.stdout


def test_what_needs_no_spec_loads_no_pydantic_and_a_command_no_other():
    program = (
        "import sys; from bishare_dsl.cli.main import COMMANDS, main\n"
        "for line in ('--help', 'specs --path lora', 'explain BS201'):\n"
        "    assert main(line.split()) == 0 and 'pydantic' not in sys.modules, line\n"
        "before = {*sys.modules}; main(['check', 'lora'])\n"
        "loaded = {name for name in COMMANDS if f'bishare_dsl.cli.{name}' in {*sys.modules} - before}\n"
        "assert loaded == {'check'}, loaded"
    )
    found = run(program=program)
    assert found.returncode == 0, found.stderr


@pytest.mark.long
def test_no_other_library_speaks_on_standard_error(tmp_path, checkpoint):
    """A merge imports transformers and PEFT, reads weights and writes them: three bars, and an advice."""
    fresh = tmp_path / "fresh"
    assert main(["compile", "lora", "-m", str(checkpoint), "--out", str(fresh), "-q"]) == 0
    merged = run("merge", "fresh", "-m", str(checkpoint), "--out", "merged", cwd=tmp_path)
    assert merged.returncode == 0
    said = merged.stderr.splitlines()
    assert said[0].startswith("loading ")
    assert said[1:] == ["merging ...", "saving ...", "saved in merged"]
