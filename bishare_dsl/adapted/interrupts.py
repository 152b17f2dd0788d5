"""Defer Ctrl-C, and end blocks, while a model changes in steps that belong together."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CHANGING = threading.RLock()
"""Held while the adapters of a model change."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Defer Ctrl-C to the end of the block; other threads than the main thread never receive it."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def ended_by(leave: Callable[[], object]) -> Iterator[None]:
    """Call ``leave`` at the end of the block, again if it is interrupted: it must not matter how often."""
    try:
        try:
            yield
        finally:
            leave()
    finally:
        leave()
