"""Adapted tiny models."""

from importlib.util import find_spec

from tests.support.adapted import adapted, base, copied, ids, spec  # noqa: F401

# `make test-quantised` brings torchao and GPTQ. Elsewhere, half of these tests could not run.
collect_ignore = [] if find_spec("torchao") else ["test_quantised.py"]
