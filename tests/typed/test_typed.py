"""A user's program passes the type checkers, and it runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("program.py")


def test_the_program_runs(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "LlamaForCausalLM" in run.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "lora",
    ]


PYRIGHT = "pyright@1.1.407"
"""Of npm, since the wheel of this name downloads it from there too, and a Node.js besides."""


@pytest.mark.long
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_type_checker_accepts_the_program(checker: str) -> None:
    command = [sys.executable, "-m", "mypy", "--strict"]
    if checker == "pyright":
        npx = shutil.which("npx")
        assert npx, "pyright runs on Node.js 18 or later: install it"
        command = [npx, "--yes", PYRIGHT, "--pythonpath", sys.executable]
    run = subprocess.run([*command, PROGRAM], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
