"""Start this Python twice over, as `accelerate launch` does: once for all files of this folder."""

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.distributed import together
from tests.distributed.together import raised

ROOT = str(Path(__file__).parents[2])
collect_ignore = [] if find_spec("deepspeed") else ["test_deepspeed.py"]  # `make test-deepspeed`


@dataclass(frozen=True)
class Launched:
    """What two processes printed, and the folder in which each file has one."""

    folder: Path
    printed: str


@pytest.fixture(scope="session")
def launched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Run what `together` decorates in each file that was chosen, in two processes of a thread each."""
    folder = tmp_path_factory.mktemp("launched")
    chosen = [item for item in request.session.items if item.path.parent == Path(__file__).parent]
    modules = {item.path.stem: item.module for item in chosen if isinstance(item, pytest.Function)}
    files = {name: module for name, module in modules.items() if hasattr(module, "together")}
    for name, module in files.items():
        (folder / name).mkdir()
        module.together.prepare(folder / name)
    # What is launched imports of `tests`.
    path = filter(None, (ROOT, f"{ROOT}/examples", os.environ.get("PYTHONPATH")))
    done = subprocess.run(
        [sys.executable, together.__file__, str(folder), *files],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return Launched(folder, done.stdout)


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, launched: Launched) -> Path:
    """The folder of this file."""
    return launched.folder / request.path.stem


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, str]]:
    """What each function of this file raised in each process, by its name."""
    return raised(folder)
