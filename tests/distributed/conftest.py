"""Start this Python twice over, as `accelerate launch` does: once for all files of this folder."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.distributed import together
from tests.distributed.together import raised

ROOT = str(Path(__file__).parents[2])
collect_ignore = [] if find_spec("deepspeed") else ["test_deepspeed.py"]  # `make test-deepspeed`


@pytest.fixture(scope="session")
def launched(request, tmp_path_factory):
    """Run what `together` decorates in each file that was chosen, in two processes of a thread each.

    Returns the folder in which each file has one.
    """
    folder = tmp_path_factory.mktemp("launched")
    chosen = [item for item in request.session.items if item.path.parent == Path(__file__).parent]
    modules = {item.path.stem: item.module for item in chosen if isinstance(item, pytest.Function)}
    files = {name: module for name, module in modules.items() if hasattr(module, "together")}
    for name, module in files.items():
        (folder / name).mkdir()
        module.together.prepare(folder / name)
    # What is launched imports of `tests`.
    path = filter(None, (ROOT, f"{ROOT}/examples", os.environ.get("PYTHONPATH")))
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, together.__file__, str(folder), *files]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "check": False}
    done = subprocess.run(command, env=settings, **how)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def folder(request, launched):
    """The folder of this file."""
    return launched / request.path.stem


@pytest.fixture(scope="module")
def found(folder):
    """What each function of this file raised in each process, by its name."""
    return raised(folder)
