"""Tensors without a gradient."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from bishare_dsl.diagnostics import BishareWarning
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.train import GradientCheck, TrainError
from tests.verify.served import KINDS


def lora(base_size=2, **settings):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = tiny_model("llama", num_hidden_layers=base_size)
    return get_peft_model(model, LoraConfig(r=2, target_modules=KINDS, **settings))


def run(model, tmp_path, *callbacks, steps=4, **settings):
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.arange(3, 35).view(4, 8)]
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=steps,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **{"learning_rate": 1e-2} | settings,
    )
    Trainer(model, arguments, train_dataset=rows, callbacks=[*callbacks]).train()


def test_every_tensor_has_a_gradient(tmp_path, recwarn):
    """Also where the first steps, at a rate of 0, change nothing."""
    run(lora(), tmp_path, GradientCheck(stop=True), warmup_steps=2, lr_scheduler_type="linear")
    assert not [w for w in recwarn if issubclass(w.category, BishareWarning)]


def test_a_module_that_is_not_used_has_none(tmp_path):
    """TRL's Liger loss reads the head's weight, past its LoRA; here a layer is left out."""
    model = lora()
    layer = model.base_model.model.model.layers[1].mlp
    layer.forward = lambda x: x
    with pytest.warns(BishareWarning, match=r"BS873.*6 of 28 trainable tensors.*layers\.1\.mlp"):
        run(model, tmp_path, GradientCheck())
    with pytest.raises(TrainError, match="BS873"):
        run(model, tmp_path, GradientCheck(stop=True))


def test_gradients_that_are_all_zero(tmp_path):
    model = lora()
    down = model.base_model.model.model.layers[0].mlp.up_proj.lora_A["default"]
    down.register_forward_hook(lambda module, inputs, output: output * 0)
    with pytest.raises(TrainError, match=r"2 of 28 trainable tensors have no gradient in step 3"):
        run(model, tmp_path, GradientCheck(stop=True))


def test_train_always_looks(start, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        GradientCheck, "on_pre_optimizer_step", lambda self, *_, **__: seen.append(self)
    )
    start(tmp_path / "out", max_steps=2)
    assert len(seen) == 2
