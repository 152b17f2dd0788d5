"""Put together what the playground runs: Pyodide from npm, wheels from PyPI, and bishare's own.

python website/playground.py build/docs/playground/runtime
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
PYODIDE = "314"
FILES = (
    "pyodide.mjs",
    "pyodide.asm.mjs",
    "pyodide.asm.wasm",
    "python_stdlib.zip",
    "pyodide-lock.json",
)
NEEDED = ("click", "lark", "pydantic", "typing-extensions")
"""Those of bishare's dependencies that `check`, `fmt`, `plan` and `show` import."""


def python(out: Path) -> dict[str, str]:
    """Fetch Python for WebAssembly; what its lock file says of it."""
    with TemporaryDirectory() as folder:
        packed = ["npm", "pack", "--silent", f"pyodide@{PYODIDE}", "--pack-destination", folder]
        subprocess.run(packed, check=True, stdout=subprocess.DEVNULL)
        [archive] = Path(folder).glob("pyodide-*.tgz")
        with tarfile.open(archive) as files:
            for name in FILES:
                member = files.extractfile(f"package/{name}")
                assert member is not None, name
                (out / name).write_bytes(member.read())
    info: dict[str, str] = json.loads((out / "pyodide-lock.json").read_text("utf-8"))["info"]
    return info


def pip(*arguments: str) -> None:
    """Run pip, quietly."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    subprocess.run(command, check=True)


def wheels(out: Path, info: dict[str, str]) -> list[str]:
    """Fetch the wheels that fit that Python, and build bishare's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [need for need in project["dependencies"] if need.startswith(NEEDED)]
    assert len(wanted) == len(NEEDED), wanted
    version = ".".join(info["python"].split(".")[:2])
    abi = f"cp{version.replace('.', '')}"
    platform = f"pyemscripten_{info['abi_version']}_{info['arch']}"
    fitting = ["--only-binary=:all:", "--platform", platform, "--python-version", version]
    fitting += ["--implementation", "cp", "--abi", abi, "--abi", "none"]
    pip("download", "--dest", str(out), *fitting, *wanted)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(ROOT))
    return sorted(path.name for path in out.glob("*.whl"))


def main(folder: str) -> None:
    """Put all of it into a folder."""
    out = Path(folder)
    (out / "wheels").mkdir(parents=True, exist_ok=True)
    for old in out.glob("wheels/*.whl"):
        old.unlink()
    found = wheels(out / "wheels", python(out))
    (out / "runtime.json").write_text(json.dumps({"wheels": found}), encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    sys.stdout.write(f"{out}: {size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main(sys.argv[1])
