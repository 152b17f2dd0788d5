"""Ctrl-C inside of a library that turns it into an error of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def hides_interrupt(error: BaseException) -> bool:
    """Tell whether an error stands for Ctrl-C.

    Python wraps it if it comes while a class is made, and Pydantic if it comes while a value is written: then
    only the text of the error tells.
    """
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        if isinstance(link, KeyboardInterrupt):
            return True
        if type(link).__name__ == "PydanticSerializationError" and "KeyboardInterrupt" in str(link):
            return True
        seen.add(id(link))
        link = link.__cause__ or link.__context__
    return False


@contextmanager
def unhidden_interrupt() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` in place of an error of the block that hides it."""
    try:
        yield
    except Exception as error:
        if hides_interrupt(error):
            raise KeyboardInterrupt from error
        raise
