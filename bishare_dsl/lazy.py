"""Names of a package that load what they need when they are first used.

`check`, `fmt` and `plan` must answer at once; a package that imports all of its modules would make each
command pay for every other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package whose names live in other modules.

    Args:
        package: its ``__name__``.
        homes: the module of each name.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        # Kept in the package, so that this runs once for each name.
        setattr(sys.modules[package], name, value)
        return value

    return get
