"""Tests of kernels by Triton's interpreter: `make test-kernels`. Elsewhere they are not collected."""

import os
from importlib.util import find_spec

run = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton")
collect_ignore_glob = [] if run else ["test_*.py"]
