"""The same logits in llama.cpp, on SmolLM2-135M-Instruct in float32."""

import pytest
import torch

from bishare_dsl import compile_spec
from bishare_dsl.models import load_model
from examples.smollm2 import smollm2_folder
from tests.export.conftest import moved
from tests.export.gguf_base import write_base
from tests.export.libllama import llama

pytestmark = [pytest.mark.e2e, pytest.mark.long]

PARAMS = {"size": 64, "r_local": 2, "r_intra": 4, "r_inter": 16}


def test_llama_cpp_computes_the_same(tmp_path):
    model, tokenizer = load_model(str(smollm2_folder()), dtype=torch.float32)
    ids = tokenizer("Low-rank adapters are small, and many of them", return_tensors="pt").input_ids
    with torch.no_grad():
        plain = model(ids).logits[0]
    write_base(tmp_path / "base.gguf", model)
    moved(compile_spec("bishare_ke", model, params=PARAMS, seed=0))
    with torch.no_grad():
        want = model(ids).logits[0]
    assert (want - plain).abs().max() > 1
    model.bishare.export(tmp_path / "lora.gguf", "gguf")
    with llama(tmp_path / "base.gguf") as base:
        torch.testing.assert_close(base.logits(ids[0].tolist()), plain, rtol=0, atol=1e-3)
        base.use(tmp_path / "lora.gguf")
        torch.testing.assert_close(base.logits(ids[0].tolist()), want, rtol=0, atol=1e-3)
