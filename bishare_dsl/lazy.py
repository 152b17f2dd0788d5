"""Import the names of a package when they are first used.

`check`, `fmt` and `plan` must start fast, so a package must not import all of its modules.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package whose names are defined in modules below it.

    Args:
        package: the ``__name__`` of the package.
        names: maps each module to its names, with spaces in between.
    """
    homes = {name: module for module, defined in names.items() for name in defined.split()}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        # Store the name in the package, so that this runs once per name.
        setattr(sys.modules[package], name, value)
        return value

    return get
