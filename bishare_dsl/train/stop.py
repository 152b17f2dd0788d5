"""Stopping at the end of a step: the first Ctrl-C or SIGTERM asks for it, the second stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAID = b"\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once\n"


@contextmanager
def hear_signals(says: bool) -> Iterator[Callable[[], bool]]:
    """Let a signal be a request, for a block; gives what tells whether there was one.

    Outside of a main thread nothing changes.

    Args:
        says: whether to confirm the request on standard error.
    """
    heard: list[int] = []

    def restore() -> None:
        for which, handler in before.items():
            # None: it was installed by something that is not Python.
            signal.signal(which, signal.SIG_DFL if handler is None else handler)

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        restore()
        if says:
            os.write(2, _SAID)  # `print` may be what was interrupted.

    main = threading.current_thread() is threading.main_thread()
    before = {which: signal.signal(which, hear) for which in _SIGNALS} if main else {}
    try:
        yield lambda: bool(heard)
    finally:
        restore()
