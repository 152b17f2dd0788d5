"""Drawn lives of adapted models, beside the dense reference; `make hunt` draws 250, others each time."""

import pytest
from hypothesis import settings

from tests.lives.life import Life

TestLife = pytest.mark.filterwarnings("ignore")(Life.TestCase)
TestLife.settings = settings(
    max_examples=max(1, settings().max_examples // 4), stateful_step_count=15
)
