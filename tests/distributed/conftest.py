"""Start this Python several times over, as `torchrun` does."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="session")
def launch() -> Callable[..., str]:
    """Run this Python, with a thread in each process: what is printed. Fail if a process does."""

    def run(*arguments: str | Path) -> str:
        path = filter(None, (ROOT, os.environ.get("PYTHONPATH")))
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            # The scripts import of `tests`.
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


@pytest.fixture(scope="session")
def torchrun(launch: Callable[..., str]) -> Callable[..., str]:
    """Run a script, or ``-m`` a module, in two processes."""

    def run(*arguments: str | Path) -> str:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        return launch(*command, *arguments)

    return run
