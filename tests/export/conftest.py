"""The adapted tiny models of the adapters' tests."""

from tests.adapter.conftest import adapted, ids

__all__ = ["adapted", "ids"]
