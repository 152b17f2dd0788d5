"""Transforms in files of the user's own, which are run because the command line names them."""

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
    """Run a Python file, or each of a folder whose name does not begin with `_`, and register its transforms.

    Args:
        path: of the file or the folder. A file that was run in this process is not run again.

    Raises:
        CommandError: there is none, it fails, or its transforms cannot be used (BS910).
    """
    files = sorted(path.glob("[!_]*.py")) if path.is_dir() else [path]
    if not files:
        raise _unusable(path, "no .py file is in the folder")
    for file in files:
        _run(file)


def _run(file: Path) -> None:
    whole = real_path(file)
    # The name is of no module that is installed, and of the same file the same in every process.
    name = f"spec_transform_{file.stem}_{hashlib.sha256(str(whole).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    found = importlib.util.spec_from_file_location(name, whole)
    if found is None or found.loader is None or not file.is_file():
        raise _unusable(file, "it is not a file of Python")
    module = sys.modules[name] = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        kinds = [kind for kind in vars(module).values() if _is_transform(kind, name)]
        for kind in kinds:
            register(kind)
    except (Exception, SystemExit) as error:  # whatever the file raises
        del sys.modules[name]
        raise _unusable(file, describe_exception(error)) from error
    if not kinds:
        raise _unusable(file, "no class in it is a transform with a name")


def _is_transform(value: object, module: str) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, Transform)
        and value.__module__ == module
        and hasattr(value, "name")
    )


def _unusable(path: Path, reason: str) -> CommandError:
    return CommandError(codes.BAD_TRANSFORM_FILE(path=path, reason=reason))
