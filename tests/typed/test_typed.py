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


@pytest.mark.long
@pytest.mark.parametrize("checker", [["mypy", "--strict"], ["pyright"]], ids=["mypy", "pyright"])
def test_a_type_checker_accepts_the_program(checker: list[str]) -> None:
    command = shutil.which(checker[0], path=str(Path(sys.executable).parent)) or shutil.which(
        checker[0]
    )
    if command is None:
        pytest.skip(f"{checker[0]} is not installed")
    run = subprocess.run([command, *checker[1:], PROGRAM], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
