"""Adapted tiny models."""

from tests.support.adapted import adapted, base, copied, ids, spec  # noqa: F401
