"""An installed wheel works from any folder, with nothing of the checkout in reach."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation and without dependencies nothing is downloaded: hatchling is among the dev tools.
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (path,) = folder.glob("bishare-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-compile", "--no-index", "--target", str(folder), str(wheel))
    return folder


def pip(*arguments: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def bishare(installed: Path, folder: Path, *arguments: str) -> str:
    """Standard output of the installed command, run in ``folder``."""
    # -S leaves out the .pth file by which the checkout is installed; what bishare needs is named instead.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(installed), sysconfig.get_path("purelib")])
    }
    program = "import sys; from bishare_dsl.cli.main import main; sys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-S", "-P", "-c", program, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_wheel_holds_what_the_checkout_holds(wheel: Path) -> None:
    inside = set(ZipFile(wheel).namelist())
    expected = {"bishare_dsl/py.typed"}
    expected |= {f"bishare_dsl/{path.relative_to(ROOT)}" for path in ROOT.glob("grammars/*")}
    expected |= {f"bishare_dsl/{path.relative_to(ROOT)}" for path in ROOT.glob("specs/*.share")}
    expected |= {
        str(path.relative_to(ROOT))
        for path in ROOT.glob("bishare_dsl/**/*")
        if path.suffix in (".py", ".html")
    }
    assert "bishare_dsl/grammars/share.lark" in expected
    assert expected <= inside
    # The tables that Lark makes of the grammar are the user's, not the wheel's.
    assert [name for name in inside if "/grammars/" in name] == ["bishare_dsl/grammars/share.lark"]
    assert {name.partition("/")[0] for name in inside} <= {"bishare_dsl", wheel_metadata(wheel)}


def wheel_metadata(wheel: Path) -> str:
    name, version = wheel.name.split("-")[:2]
    return f"{name}-{version}.dist-info"


def test_resources_come_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    program = (
        "from bishare_dsl import resources; print(resources.find_spec('bishare_ke').resolve())"
    )
    run = subprocess.run(
        [sys.executable, "-S", "-P", "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == str(installed / "bishare_dsl" / "specs" / "bishare_ke.share")


def test_shipped_spec_is_checked_from_any_folder(installed: Path, tmp_path: Path) -> None:
    bishare(installed, tmp_path, "check", "bishare_ke")


def test_shipped_spec_is_planned_from_any_folder(installed: Path, tmp_path: Path) -> None:
    plan = json.loads(
        bishare(installed, tmp_path, "plan", "bishare_ke", "--model", "llama-7b", "--json")
    )
    assert plan["trainable"] > 0
    assert not list(tmp_path.iterdir())
