"""Ways to copy a model, as the adapters' own tests have them."""

from tests.adapter.conftest import copied

__all__ = ["copied"]
