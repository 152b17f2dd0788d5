"""Ways to copy a model, as the adapters' own tests have them, and a model with adapters."""

import pytest

from tests.support.adapted import copied
from tests.support.families import tiny_model

__all__ = ["copied"]


@pytest.fixture(scope="session")
def shared():
    from tests.batched.test_batches import ADAPTERS, filled

    return filled(tiny_model("llama"), ADAPTERS)
