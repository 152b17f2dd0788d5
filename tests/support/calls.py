"""Count the calls that a piece of work takes: how it grows, and not how fast this machine is."""

import sys


def calls_of(function):
    """Return the number of calls, of Python and of C, that a function takes; each step of a generator is one."""
    count = 0

    def add(_frame, event, _argument):
        nonlocal count
        if event in ("call", "c_call"):
            count += 1

    sys.setprofile(add)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count
