"""What is written by a program is what the program would write now."""

import subprocess
import sys
from pathlib import Path

from bishare_dsl.diagnostics.pages import main

ROOT = Path(__file__).parents[2]


def test_pages_of_the_error_codes(capsys):
    assert main(["--check", str(ROOT / "docs" / "errors")]) == 0, capsys.readouterr().err


def test_picture():
    script = ROOT / "docs" / "images" / "sharing.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0


def test_numbers_of_the_readme():
    """What it says was measured is what the benchmarks say."""
    readme, benchmarks = (
        (ROOT / name).read_text("utf-8").replace("**", "")
        for name in ("README.md", "benchmarks/README.md")
    )
    table = readme[readme.index("| adapted by |") :].split("\n\n")[0].splitlines()[2:]
    assert table
    assert not set(table) - set(benchmarks.splitlines())
