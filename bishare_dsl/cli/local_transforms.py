"""Load transforms from files that the command line names."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from bishare_dsl.cli.report import CommandError
from bishare_dsl.diagnostics.codes import usage as codes
from bishare_dsl.reading import real_path
from bishare_dsl.transforms import Transform, register
from bishare_dsl.transforms.registry import describe_exception


def run_transforms(path: Path) -> None:
    """Run a Python file and register its transforms.

    Args:
        path: a file, or a folder whose files are run unless their name begins with `_`. Each file runs
        once per
            process.

    Raises:
        CommandError: a file is missing, fails, or has unusable transforms (BS910).
    """
    files = sorted(path.glob("[!_]*.py")) if path.is_dir() else [path]
    if not files:
        raise _unusable(path, "no .py file is in the folder")
    for file in files:
        _run(file)


def _run(file: Path) -> None:
    whole = real_path(file)
    # A name that no installed module has, and that is the same in every process.
    name = f"spec_transform_{file.stem}_{hashlib.sha256(str(whole).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    module_spec = importlib.util.spec_from_file_location(name, whole)
    if module_spec is None or module_spec.loader is None or not file.is_file():
        raise _unusable(file, "it is not a file of Python")
    module = sys.modules[name] = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        classes = [k for k in vars(module).values() if isinstance(k, type) and hasattr(k, "name")]
        kinds = [k for k in classes if k.__module__ == name and issubclass(k, Transform)]
        for kind in kinds:
            register(kind)
    except (Exception, SystemExit) as error:  # the file may raise anything
        del sys.modules[name]
        raise _unusable(file, describe_exception(error)) from error
    if not kinds:
        raise _unusable(file, "no class in it is a transform with a name")


def _unusable(path: Path, reason: str) -> CommandError:
    return CommandError(codes.BAD_TRANSFORM_FILE(path=path, reason=reason))
