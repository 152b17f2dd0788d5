import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import torch

from bishare_dsl import compile_spec, handle, load_adapter, parse_spec, plan_spec
from bishare_dsl.api import BishareWarning
from bishare_dsl.diagnostics import BishareError, SpecError
from bishare_dsl.folder.files import save_adapter
from bishare_dsl.initial.values import draw
from bishare_dsl.language import spec_text
from bishare_dsl.models import inspect_model, preset
from bishare_dsl.peft import BishareConfig
from tests.support.adapted import logits
from tests.support.families import tiny_model

TEXT = """\
# two tiers
spec s
param r = 2
target q_proj, down_proj
share x per layer rank r via SS
share y per module rank 1
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "s.share"
    path.write_text(TEXT)
    return path


@pytest.fixture
def ids():
    return torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))


def tensors(model):
    return model.bishare.tensors()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# compile_spec -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_same_object_with_the_same_logits(family, ids):
    kinds = "c_attn" if family == "gpt2" else "q_proj, k_proj"
    spec = parse_spec(f"spec s target {kinds} share x per model rank 3 via SS")
    model = tiny_model(family)
    before, cls = logits(model, ids), type(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BishareWarning)
        assert compile_spec(spec, model) is model
    assert type(model) is cls
    assert torch.equal(logits(model, ids), before)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {
        id(t) for t in tensors(model).values()
    }


def test_a_spec_by_path_by_name_and_as_an_object(file):
    by_object = compile_spec(parse_spec(TEXT), tiny_model("llama"))
    by_path = compile_spec(file, tiny_model("llama"))
    by_text_path = compile_spec(str(file), tiny_model("llama"))
    assert same(tensors(by_object), tensors(by_path))
    assert same(tensors(by_object), tensors(by_text_path))
    model = compile_spec("lora", tiny_model("llama"))
    assert model.bishare.plan.spec == "lora"
    assert handle(model) is model.bishare
    assert len([name for name in dir(model.bishare) if not name.startswith("_")]) < 45
    assert compile_spec("specs/lora.share", tiny_model("llama")).bishare.plan.spec == "lora"


def test_params(file):
    model = compile_spec(file, tiny_model("llama"), params={"r": 5})
    assert model.bishare.plan.params == {"r": 5}
    assert tensors(model)["x.layer_0.A"].shape[0] == 5
    with pytest.raises(SpecError, match="BS207"):
        compile_spec(file, tiny_model("llama"), params={"q": 5})


def test_seeds(file):
    first, again, other = (
        tensors(compile_spec(file, tiny_model("llama"), seed=seed)) for seed in (1, 1, 2)
    )
    assert same(first, again)
    assert not torch.equal(first["x.layer_0.A"], other["x.layer_0.A"])
    model = tiny_model("llama")
    with pytest.raises(TypeError):  # Not when the trained adapter is saved.
        compile_spec(file, model, seed="1")
    counted = np.int64(1)
    assert same(first, tensors(compile_spec(file, model, seed=counted)))
    assert type(model.bishare.seed) is int


@pytest.mark.parametrize("offloaded", [False, True])
def test_a_low_precision_base_and_an_offloaded_one_get_real_tensors_of_float32(offloaded, ids):
    from accelerate import cpu_offload

    model = tiny_model("llama").to(torch.bfloat16)
    if offloaded:
        model = cpu_offload(model, execution_device=torch.device("cpu"))
    before = logits(model, ids)
    compile_spec(parse_spec(TEXT), model)
    assert {(t.dtype, t.is_meta) for t in tensors(model).values()} == {(torch.float32, False)}
    assert torch.equal(logits(model, ids), before)


# plan_spec ----------------------------------------------------------------------------------------


def test_plans_of_a_model_of_shapes_and_of_a_name(file):
    model = tiny_model("llama")
    assert plan_spec(file, model) == plan_spec(file, inspect_model(model))
    assert plan_spec(file, "smollm2-135m") == plan_spec(file, preset("smollm2-135m"))
    assert plan_spec(file, model, {"r": 4}).trainable > plan_spec(file, model).trainable


def test_planning_a_preset_and_reading_an_adapter_need_no_torch(file, tmp_path):
    plan = plan_spec(file, preset("smollm2-135m"))
    save_adapter(tmp_path / "adapter", plan, draw(plan, 0), TEXT, seed=0)
    code = (
        "import sys; from bishare_dsl import plan_spec; "
        "from bishare_dsl.folder.files import read_adapter; "
        f"assert plan_spec({str(file)!r}, 'llama-7b').trainable; "
        f"assert read_adapter({str(tmp_path / 'adapter')!r}).plan.trainable; "
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What is saved ------------------------------------------------------------------------------------


def saved_text(model, folder):
    model.bishare.save_pretrained(folder)
    return json.loads((folder / "adapter_config.json").read_text())["spec"]


def test_a_spec_is_saved_as_text_with_its_params(file, tmp_path):
    spec, model = parse_spec(TEXT), tiny_model("llama")
    assert saved_text(compile_spec(spec, model), tmp_path / "a") == spec_text(spec)
    model = compile_spec(file, tiny_model("llama"), {"r": 7})
    assert parse_spec(saved_text(model, tmp_path / "b")) == spec.with_params({"r": 7})


# load_adapter -------------------------------------------------------------------------------------


def test_loading_into_an_adapted_model_is_refused_and_into_a_base_trains_the_adapter(
    file, tmp_path, ids
):
    model = compile_spec(file, tiny_model("llama"))
    model.bishare.save_pretrained(tmp_path / "a")
    before = dict(tensors(model))
    for again in (lambda: load_adapter(tmp_path / "a", model), lambda: compile_spec(file, model)):
        with pytest.raises(BishareError, match="BS401"):
            again()
    assert all(before[name] is t for name, t in tensors(model).items())
    assert torch.equal(logits(model, ids), logits(tiny_model("llama"), ids))
    model = load_adapter(tmp_path / "a", tiny_model("llama"))
    assert {id(p) for p in model.parameters() if p.requires_grad} == {
        id(t) for t in tensors(model).values()
    }


def test_what_is_kept_of_a_spec_needs_no_other_file(tmp_path):
    (tmp_path / "base.share").write_text(
        "spec base\nparam r = 2\ntarget q_proj, v_proj\nshare local per module rank r\n"
    )
    mine = tmp_path / "mine.share"
    mine.write_text('# mine\nspec mine\nuse "base.share"\nreplace param r = 3\n')
    model = compile_spec(mine, tiny_model("llama"))
    kept = model.bishare.spec_text
    assert "use" not in kept
    assert plan_spec(parse_spec(kept), tiny_model("llama")) == model.bishare.plan
    # A text that stands on its own is kept as it was written.
    alone = compile_spec(tmp_path / "base.share", tiny_model("llama"))
    assert alone.bishare.spec_text == (tmp_path / "base.share").read_text()


# Wrong arguments ------------------------------------------------------------------------------------


ADAPTED = r"BS401.*= help: take it out first: `model = model.unload\(\)`"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: compile_spec(m, "lora"), r"second argument: `compile_spec\(spec, model\)`"),
        (lambda m: plan_spec(m, "lora"), "the model the second one"),
        (lambda m: load_adapter(m, "folder"), r"second argument: `load_adapter\(folder, model\)`"),
        (lambda m: compile_spec("lora", "llama-7b"), "in memory, and 'llama-7b' is none.*from_pretrained"),
        (lambda m: compile_spec(LORA, m), "docs/peft.md writes it as a spec: `compile_spec"),
        (lambda m: compile_spec("lora", m, seed=None), "`seed` is an integer, and this is"),
        (lambda m: compile_spec("lora", m, seed="1"), "`seed` is an integer, and this is"),
        (lambda m: compile_spec("lora", m, seed=1.5), "`seed` is an integer, and this is"),
        (lambda m: peft.get_peft_model(m, "lora"), r"get_peft_model\(model, BishareConfig\(spec='lora'\)\)"),
        (lambda m: handle(m), "BS627.*no adapter.*adapt the model first, by `compile_spec"),
        (lambda m: compile_spec("lora", m, 8), "`params` is a dictionary such as .*this is 8"),
        (lambda m: parse_spec("mine.share"), r"`parse_spec\(Path\('mine.share'\).read_text\(\)\)`"),
        (lambda m: parse_spec(Path("mine.share")), r"Path\('mine.share'\).read_text"),
        (lambda m: load_adapter("mine.share", m), "BS601.*`compile_spec` take a spec"),
        (lambda m: BishareConfig("lora", params="r=8"), "name the spec"),
        (lambda m: BishareConfig(spec="lora", params="r=8"), "BS604.*`BishareConfig`.*`params` takes dict"),
        (lambda m: BishareConfig(spec="lora", seed="0"), "BS604.*`seed` takes int, not '0'"),
        (lambda m: compile_spec("lora", a_lora(m)), ADAPTED),
        (lambda m: peft.get_peft_model(a_lora(m), BishareConfig(spec="lora")), ADAPTED),
        (lambda m: compile_spec("lora", m).bishare.merge("merged"), "merge_and_unload"),
    ],
)  # fmt: skip
def test_a_wrong_call_names_the_mistake_and_what_to_write(call, says):
    model = tiny_model("llama")
    with pytest.raises(BishareError if "BS" in says else TypeError, match=f"(?s){says}"):
        call(model)
    assert hasattr(model, "bishare") == (says == "merge_and_unload")


LORA = peft.LoraConfig(target_modules=["q_proj"])


def a_lora(model):
    return peft.get_peft_model(model, LORA)


def test_an_adapter_beside_another_is_possible_as_its_refusal_says():
    model = peft.get_peft_model(tiny_model("llama"), BishareConfig(spec="lora"))
    with pytest.raises(BishareError, match=f"(?s){ADAPTED}"):
        peft.get_peft_model(model, BishareConfig(spec="vera"))
    again = peft.get_peft_model(model.unload(), BishareConfig(spec="vera"))
    assert again.base_model.model.bishare.plan.spec == "vera"


def test_the_first_line_of_a_program_is_its_own(tmp_path):
    """PEFT imports bitsandbytes, which warns of kernels that no CPU needs."""
    code = "from bishare_dsl import compile_spec; import bishare_dsl.peft; print('mine')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (run.stdout, run.stderr) == ("mine\n", "")
