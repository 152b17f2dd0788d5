"""Ways to train in less memory: half the bits, activations twice, the base kept elsewhere or quantised."""

import pytest
import torch
from accelerate import cpu_offload, dispatch_model

from bishare_dsl.adapter.files import read_adapter
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.train.errors import TrainError
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
    # Two examples of each four at a time; and the probe's two batches.
    assert len(calls) == 2 + 12 * 2


def test_autocast(start, tmp_path):
    dtypes = set()
    model = tiny_model("llama")
    model.model.layers[0].mlp.register_forward_hook(lambda m, i, out: dtypes.add(out.dtype))
    cast = start(tmp_path / "cast", model=model, logging_steps=1, bf16=True)
    plain = start(tmp_path / "plain", logging_steps=1)
    assert torch.bfloat16 in dtypes
    assert [x[0] for x in shown(cast)] == pytest.approx([x[0] for x in shown(plain)], rel=0.02)
    assert {tensor.dtype for tensor in values(cast).values()} == {torch.float32}


def test_a_base_of_half_the_size(start, tmp_path, model_folder):
    """The adapter stays in float32, as it is trained and saved."""
    half = start(
        tmp_path / "half", model=str(model_folder), dtype="bfloat16", logging_steps=1,
    )  # fmt: skip
    plain = start(tmp_path / "plain", logging_steps=1)
    assert half.model.lm_head.weight.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in values(half).values()} == {torch.float32}
    assert [x[0] for x in shown(half)] == pytest.approx([x[0] for x in shown(plain)], rel=0.02)
    assert read_adapter(tmp_path / "half").tensors()["a.q_proj.A"].dtype == torch.float32


@pytest.mark.parametrize("how", ["map", "dispatched", "offloaded"])
def test_a_base_that_is_kept_elsewhere(start, tmp_path, model_folder, how):
    """accelerate brings its weights when they are needed; the adapter is resident."""
    plain = start(tmp_path / "plain", logging_steps=1)
    more = {"logging_steps": 1}
    if how == "map":
        more |= {"model": str(model_folder), "device_map": "auto"}
    else:
        model = more["model"] = tiny_model("llama")
        if how == "offloaded":
            cpu_offload(model, torch.device("cpu"))
        else:
            device_map = {name: "cpu" for name, _ in model.named_children()}
            device_map |= {"model": "disk"}
            folder = str(tmp_path / "weights")
            dispatch_model(model, device_map, "cpu", offload_dir=folder, force_hooks=True)
    result = start(tmp_path / "it", **more)
    if how != "map":
        assert result.model.model.layers[0].self_attn.q_proj.weight.is_meta
    assert not any(tensor.is_meta for tensor in values(result).values())
    for here, there in zip(shown(result), shown(plain), strict=True):
        assert here == pytest.approx(there, rel=1e-5)


def test_a_quantised_base(start, tmp_path):
    """What is quantised here is but the word, which is all that the Trainer asks for."""
    model = tiny_model("llama")
    model.is_quantized = True
    model.hf_quantizer = type("Quantizer", (), {"is_trainable": True, "is_qat_trainable": False})()
    assert start(tmp_path / "it", model=model).steps == 6
    assert not getattr(model, "_hf_peft_config_loaded", False)


def test_four_bits(start, tmp_path):
    """The base is loaded in NF4 and trains no other tensors; what is saved fits any base."""
    from bitsandbytes.nn import Linear4bit

    tiny_model("llama", hidden_size=128, head_dim=32, intermediate_size=256).save_pretrained(
        folder := tmp_path / "model"
    )
    result = start(tmp_path / "it", model=str(folder), load_in_4bit=True, logging_steps=1)
    layers = [m for m in result.model.modules() if isinstance(m, Linear4bit)]
    assert len(layers) == 14
    assert not isinstance(result.model.lm_head, Linear4bit)
    first, *_, last = [loss for loss, *_ in shown(result)]
    assert last < first
    assert {tensor.dtype for tensor in values(result).values()} == {torch.float32}


def test_a_model_that_is_not_causal_is_refused(start, tmp_path):
    with pytest.raises(TrainError) as caught:
        start(tmp_path / "it", model=tiny_model("bert"))
    [problem] = caught.value.problems
    assert problem.code == "BS756"
    assert "`BertForMaskedLM`" in problem.message
