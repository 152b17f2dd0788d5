"""Stopping at the end of a step: the first Ctrl-C or SIGTERM asks for it, the second stops at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAID = b"\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once\n"


class Stop:
    """A block in which a signal is a request. Outside of a main thread it changes nothing.

    Args:
        says: whether to tell the user, on standard error, that the request has been heard.
    """

    def __init__(self, says: bool) -> None:
        self.requested = False
        self._says = says
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {which: signal.signal(which, self._hear) for which in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        if self._says:
            os.write(2, _SAID)  # `print` may be what was interrupted.

    def _restore(self) -> None:
        for which, handler in self._before.items():
            # None: it was installed by something that is not Python.
            signal.signal(which, signal.SIG_DFL if handler is None else handler)
        self._before = {}
