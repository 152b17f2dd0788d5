"""Run `importlib.metadata` when it is used.

Pydantic imports it to ask for plug-ins, which `bishare` turns off. It imports the parsers of e-mail and of
ZIP files, which takes a twentieth of a short command.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

_NAME = "importlib.metadata"


class _Metadata(ModuleType):
    """The module before it has run: an attribute that is asked for runs it, and makes it like any other."""

    __path__ = [f"{folder}/metadata" for folder in importlib.__path__]

    def __getattr__(self, name: str) -> Any:
        self.__class__ = ModuleType  # type: ignore[assignment]
        return getattr(importlib.reload(self), name)

    def entry_points(self, **asked: Any) -> Any:
        """Stand for the function, which Pydantic imports and does not call."""
        if isinstance(self, _Metadata):
            self.__getattr__("version")
        return vars(self)["entry_points"](**asked)


def put_off() -> None:
    """Let the module run when it is used, unless it was imported already."""
    if _NAME not in sys.modules:
        vars(importlib)["metadata"] = sys.modules[_NAME] = _Metadata(_NAME)
