"""Folders that version 0.4.0 wrote give the logits that it gave."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bishare_dsl import load_adapter
from bishare_dsl.testing.models import tiny_model

FOLDERS = Path(__file__).parent / "of_0_4"


@pytest.mark.parametrize("name", ["vera-float32", "bishare_ss-bfloat16", "lora-int4"])
def test_a_folder_of_0_4_gives_its_logits(name):
    model = load_adapter(FOLDERS / name, tiny_model("llama", seed=0, hidden_size=64)).eval()
    fresh = tiny_model("llama", seed=0, hidden_size=64).eval()
    tokens = torch.arange(12).view(1, 12)
    with torch.no_grad():
        found, base = (one(tokens).logits[0, -1] for one in (model, fresh))
    expected = load_file(FOLDERS / "logits.safetensors")[name]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(base, expected, atol=1e-4)
