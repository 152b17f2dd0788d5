"""Settings of hypothesis: `ci`, the default, is the same run every time; `thorough`, or `nightly`, looks further.

`make test` takes the first few examples (`quick`), and `make test-long` all of `ci`.

HYPOTHESIS_PROFILE=thorough pytest tests/test_invariants.py --hypothesis-seed=7
"""

import gc
import io
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings

from bishare_dsl.cli.main import main
from bishare_dsl.transforms.registry import _REGISTERED
from tests.support.parts import superfluous

# No test is timed: drawing a model, or compiling, takes as long as the machine takes.
COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", max_examples=40, derandomize=True, database=None, **COMMON)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=10)
settings.register_profile("thorough", max_examples=1000, print_blob=True, **COMMON)
settings.register_profile("nightly", settings.get_profile("thorough"))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure():
    """Started in the background, a process ignores Ctrl-C, and so would what the tests start."""
    # A kill loses nothing that was written; only a power cut would, and a save waits 50 ms for the disk.
    pytest.MonkeyPatch().setattr(os, "fsync", lambda file: None)
    gc.disable()  # While all that is imported is made, there is nothing to collect.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


TESTS = Path(__file__).parent
NIGHTLY = (
    *("benchmarks", "examples", "highlight"),
    *(f"docs/test_{name}.py" for name in ("generated", "language", "notebooks", "playground")),
)
"""Tests of what stands beside the package, which only `make test-long` runs."""


@pytest.hookimpl(tryfirst=True)  # Before `-m` selects.
def pytest_collection_modifyitems(items):
    """Leave to `make test-long` rows of an `each_once` product in which no value is new, and `NIGHTLY`."""
    nightly = [TESTS / place for place in NIGHTLY]
    for item in items:
        if any(item.path.is_relative_to(place) for place in nightly):
            item.add_marker("long")
    products = {}
    for item in items:
        if item.get_closest_marker("each_once"):
            products.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for rows in products.values():
        for item in superfluous(rows):
            item.add_marker("long")


frozen = 0
"""The modules whose objects the collector looks at no more."""


def pytest_collection_finish():
    """Look no more at what lives until the end: a million and more objects of torch, transformers and the tests."""
    global frozen
    gc.freeze()
    gc.enable()
    frozen = len(sys.modules)


def pytest_runtest_teardown():
    """Nor at what a test was the first to import: each run of a trainer collects all garbage, which took it half."""
    global frozen
    if len(sys.modules) > frozen + 100:
        gc.collect()
        gc.freeze()
        frozen = len(sys.modules)


@pytest.fixture(autouse=True)
def registered():
    """What a test registers is gone after it: answers list the transforms that there are."""
    before = dict(_REGISTERED)
    yield
    _REGISTERED.clear()
    _REGISTERED.update(before)


class Run(NamedTuple):
    """What a command has answered."""

    code: int
    out: str
    err: str


@pytest.fixture
def bishare(monkeypatch, capsys):
    """Runs a command as the console script does, in this process."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Run(code, out, err)

    return run


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
