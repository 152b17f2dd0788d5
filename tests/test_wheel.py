"""What is built is whole: an installed wheel works from any folder, with nothing of the checkout in reach.

`make dist` names the folder of what it has built in ``BISHARE_DIST``; elsewhere it is built here.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from bishare_dsl import __version__

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
FILES = {
    path.relative_to(ROOT).as_posix()
    for part in ("bishare_dsl", "docs/errors", "grammars", "specs")
    for path in (ROOT / part).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
"""What a wheel is made of."""


def run(*command, **settings):
    """Return the standard output of a command, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder of the sdist, and of the wheel that is built from it."""
    if built := os.environ.get("BISHARE_DIST"):
        return ROOT / built
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation nothing is downloaded: hatchling is among the dev tools.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    return dist / f"bishare-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A fresh environment with the wheel, which finds what bishare needs in the one of these tests."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-compile", "--no-index", wheel)
    # A .pth file that is found through another is not read: this does not lead to the checkout.
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder


def bishare(installed, folder, *arguments):
    """Return the standard output of the installed command, run in ``folder``."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return run(installed / "bin" / "bishare", *arguments, cwd=folder, env=clean)


def test_the_wheel_holds_all_files_of_the_package_and_no_other(wheel):
    inside = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    # Grammars, specs and the pages of error codes stand at the top of a checkout.
    assert inside == {f"bishare_dsl/{name.removeprefix('bishare_dsl/')}" for name in FILES}
    assert {
        "bishare_dsl/py.typed",
        "bishare_dsl/grammars/share.lark",
        "bishare_dsl/specs/bishare_ke.share",
        "bishare_dsl/show/picture.css",
    } <= inside


def test_the_sdist_holds_what_a_wheel_and_the_tests_are_made_of(dist):
    with tarfile.open(dist / f"bishare-{__version__}.tar.gz") as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert inside >= FILES
    assert {"tests/test_wheel.py", "website/playground.py", "editors/spec.schema.json"} <= inside
    assert {"README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "Makefile"} <= inside


def test_the_command_tells_its_version(installed, tmp_path):
    assert bishare(installed, tmp_path, "--version").split() == ["bishare", __version__]


def test_what_ships_is_found_in_the_wheel_from_any_folder(installed, tmp_path):
    checked = json.loads(bishare(installed, tmp_path, "check", "bishare_ke", "--json"))
    assert checked["problems"] == []
    page = (ROOT / "docs" / "errors" / "BS201.md").read_text(encoding="utf-8")
    assert bishare(installed, tmp_path, "explain", "BS201") == page
    given = ("plan", "bishare_ke", "--model", "llama-7b", "--json")
    assert json.loads(bishare(installed, tmp_path, *given))["trainable"] == 3_660_032
    assert not list(tmp_path.iterdir())
    listed = json.loads(bishare(installed, tmp_path, "specs", "--json"))
    assert {Path(spec["path"]).is_relative_to(installed) for spec in listed["specs"]} == {True}
