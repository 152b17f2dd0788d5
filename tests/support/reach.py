"""Folders that a process may not open."""

import os
from contextlib import contextmanager


@contextmanager
def out_of_reach(folder):
    """Take every permission of a folder away, also from root, to whom nothing is out of reach."""
    folder.chmod(0)
    if root := os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)
