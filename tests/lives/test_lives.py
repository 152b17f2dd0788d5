"""Drawn lives of adapted models, beside the dense reference; `make hunt` draws 250, others each time."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import precondition, rule

from tests.lives.life import Life
from tests.lives.other import logits_there


class LifeInTwoProcesses(Life):
    """A life in which another process now and then loads what is saved."""

    @precondition(lambda self: self.dtype == torch.float32 and not self.merged)
    @rule()
    def load_elsewhere(self):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "adapter"
            self.handle.save_pretrained(place)
            try:
                found = logits_there(place, self.base, self.inputs)
            except AttributeError as error:
                # transformers leaves hooks behind that it cannot pickle.
                assert "local object" in str(error)  # noqa: PT017 - what it says is all there is of it
                return
        self.check(found, self.active, "logits in another process")


TestLife = pytest.mark.filterwarnings("ignore")(Life.TestCase)
TestLife.settings = settings(
    max_examples=max(1, settings().max_examples // 4), stateful_step_count=15
)
TestLifeInTwoProcesses = pytest.mark.long(
    pytest.mark.filterwarnings("ignore")(LifeInTwoProcesses.TestCase)
)
TestLifeInTwoProcesses.settings = settings(
    max_examples=max(1, settings().max_examples // 16), stateful_step_count=15
)
