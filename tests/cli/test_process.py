"""What only a process of its own shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bishare_dsl.cli.main import main

PROGRAM = "import sys; from bishare_dsl.cli.main import main; sys.exit(main())"


def run(*arguments: str, program: str = PROGRAM, **settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        **settings,
    )


def test_exit_codes(tmp_path: Path) -> None:
    (tmp_path / "bad.share").write_text("spec x\n")
    assert run("check", "lora").returncode == 0
    assert run("check", "bad.share", cwd=tmp_path).returncode == 1
    assert run("check", "nowhere").returncode == 2


def test_a_terminal_of_a_few_columns_is_wide_enough() -> None:
    found = run("specs", env={**os.environ, "COLUMNS": "4"})
    assert found.returncode == 0, found.stderr


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            PROGRAM,
            "plan",
            "bishare_ke",
            "--model",
            "llama-3.1-405b",
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Unbuffered, Python takes a write that was cut short for a whole one.
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_told_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, "plan", "lora", "--model", "llama-7b"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 2
    assert result.stderr == "error: cannot write the result: No space left on device\n"


def test_closed_streams_are_no_error() -> None:
    program = "import sys; sys.stdout = sys.stderr = None\n" + PROGRAM
    assert run("check", "lora", "--json", program=program).returncode == 0
    assert run("check", "nowhere", program=program).returncode == 2


@pytest.mark.parametrize("command", ["check", "fmt", "lsp"])
def test_a_closed_standard_input_is_an_empty_one(command: str) -> None:
    """As under cron, and in containers."""
    words = [command] if command == "lsp" else [command, "-"]
    found = run(*words, preexec_fn=lambda: os.close(0))
    assert found.returncode == (0 if command == "lsp" else 1), found.stderr
    assert "unexpected" not in found.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_notes_that_cannot_be_written_stop_no_work(tmp_path: Path) -> None:
    """On a full disk, and when their reader has ended: `fmt` of several files tells how many have changed."""
    reader, writer = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("w") as full, os.fdopen(writer, "w") as ended:
        for stream in (full, ended):
            for name in ("a.share", "b.share"):
                (tmp_path / name).write_text("spec  s\ntarget q_proj\nshare x   per kind rank 4\n")
            command = [sys.executable, "-c", PROGRAM, "fmt", "a.share", "b.share"]
            found = subprocess.run(
                command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=stream, check=False
            )
            assert found.returncode == 0
            assert "spec s\n" in (tmp_path / "b.share").read_text()


def test_characters_that_the_terminal_lacks_are_written_as_codes(tmp_path: Path) -> None:
    (tmp_path / "bad.share").write_text("spec ü\n", encoding="utf-8")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = run("check", "bad.share", cwd=tmp_path, env=environment)
    assert result.returncode == 1
    assert "\\xfc" in result.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["specs"], ["explain", "BS201"]])
def test_what_needs_no_spec_loads_no_pydantic(arguments: list[str]) -> None:
    program = (
        "import sys; from bishare_dsl.cli.main import main; code = main(sys.argv[1:]);"
        "sys.exit(code or ('pydantic' in sys.modules))"
    )
    assert run(*arguments, program=program).returncode == 0


def test_a_command_loads_no_other() -> None:
    program = (
        "import sys; from bishare_dsl.cli.main import COMMANDS, main; main(sys.argv[1:]);"
        "loaded = {name for name in COMMANDS if f'bishare_dsl.cli.{name}' in sys.modules};"
        "sys.exit(loaded != {'check'})"
    )
    assert run("check", "lora", program=program).returncode == 0


@pytest.mark.long
def test_no_other_library_speaks_on_standard_error(tmp_path: Path, checkpoint: Path) -> None:
    """A merge imports transformers and PEFT, reads weights and writes them: three bars, and an advice."""
    fresh = tmp_path / "fresh"
    assert main(["compile", "lora", "-m", str(checkpoint), "--out", str(fresh), "-q"]) == 0
    merged = run("merge", "fresh", "-m", str(checkpoint), "--out", "merged", cwd=tmp_path)
    assert merged.returncode == 0
    said = merged.stderr.splitlines()
    assert said[0].startswith("loading ")
    assert said[1:] == ["merging ...", "saving ...", "saved in merged"]
