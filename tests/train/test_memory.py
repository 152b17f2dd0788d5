"""Ways to train in less memory: half the bits, activations twice, the base kept elsewhere or quantised."""

import pytest
import torch
from safetensors.torch import load_file

from tests.support.families import tiny_model
from tests.train.conftest import losses, values


def shown(result):
    return [entry[1:4] for entry in losses(result) if entry[1] is not None]


def test_activations_computed_twice(start, tmp_path):
    """Dropout too is drawn the same the second time."""
    calls = []
    plain = start(tmp_path / "plain", logging_steps=1)
    model = tiny_model("llama")
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    twice = start(tmp_path / "twice", model=model, logging_steps=1, gradient_checkpointing=True)
    assert shown(twice) == shown(plain)
    # Two examples of each four at a time.
    assert len(calls) == 12 * 2


def test_a_base_of_half_the_size(start, tmp_path, model_folder):
    """The adapter stays in float32, as it is trained and saved."""
    half = start(
        tmp_path / "half", model=str(model_folder), dtype="bfloat16", logging_steps=1,
    )  # fmt: skip
    plain = start(tmp_path / "plain", logging_steps=1)
    assert half.model.lm_head.weight.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in values(half).values()} == {torch.float32}
    assert [x[0] for x in shown(half)] == pytest.approx([x[0] for x in shown(plain)], rel=0.02)
    stored = load_file(tmp_path / "half" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base(start, tmp_path, bits):
    """The base is loaded in NF4 or in eight bits and trains no other tensors; the adapter is float32."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    kind = Linear4bit if bits == 4 else Linear8bitLt
    tiny_model("llama", hidden_size=128, head_dim=32, intermediate_size=256).save_pretrained(
        folder := tmp_path / "model"
    )
    more = {f"load_in_{bits}bit": True, "logging_steps": 1}
    result = start(tmp_path / "it", model=str(folder), **more)
    layers = [m for m in result.model.modules() if isinstance(m, kind)]
    assert len(layers) == 14
    assert not isinstance(result.model.lm_head, kind)
    first, *_, last = [loss for loss, *_ in shown(result)]
    assert last < first
    assert {tensor.dtype for tensor in values(result).values()} == {torch.float32}
