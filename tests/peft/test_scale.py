"""Scales at run time, sums with weights, and optimizers: functions of PEFT for LoRA, for adapters of bishare."""

import copy

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from bishare_dsl import compile_spec
from bishare_dsl.convert.effective import delta
from bishare_dsl.diagnostics import AdapterError, BishareWarning
from bishare_dsl.peft import BishareConfig
from bishare_dsl.testing.models import tiny_model
from tests.peft.conftest import SPEC, logits, with_two
from tests.support.checks import randomize

PLAIN = "spec plain\ntarget q_proj, down_proj\nalpha 3\nshare a per module rank 2\n"
WHOLE = "spec whole\ntarget q_proj\ntrain norms\nshare a per module rank 2\n"
SPECS = {
    "plain": PLAIN,
    "pooled": SPEC.replace("dropout 0.2\n", ""),
    "vera": "vera",
    "loha": "loha",
}

BESIDE = [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [10, 25]}]


def updates(model, name):
    """The dense ``dW`` of each site, of the plan that runs."""
    adapter = model.get_base_model().bishare[name]
    tensors = {n: t.detach() for n, t in adapter.tensors().items()}
    return {
        site.path: delta(adapter.plan, tensors, site)
        for site in adapter.plan.sites
        if adapter.plan.terms_of[site.path]
    }


@pytest.mark.each_once
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("scale", [0.5, 0.0, -2.0])
def test_a_scale_multiplies_what_an_adapter_adds(base, ids, spec, scale, tmp_path):
    plain, model = copy.deepcopy(base), with_two(base, spec)
    handle, dense = base.bishare, updates(model, "a")
    want, others = logits(model, ids), {n: t.detach().clone() for n, t in handle.tensors().items()}
    handle.set_scale("a", scale)
    with torch.no_grad():
        for path, added in dense.items():
            weight = plain.get_submodule(path).weight
            weight.add_(added.reshape(weight.shape), alpha=scale)
    expected = logits(plain, ids)
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-3, atol=1e-4)
    rows = logits_of_rows(model, ids, ["a", "a", None])
    torch.testing.assert_close(rows[:2], expected[:2], rtol=1e-3, atol=1e-4)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-3, atol=1e-4)
    model.unmerge_adapter()
    with pytest.raises(AdapterError, match="BS640"):
        handle.set_scale("c", 2.0)
    model.save_pretrained(tmp_path)  # No scale is saved.
    again = PeftModel.from_pretrained(tiny_model("llama").eval(), tmp_path / "a")
    assert torch.equal(logits(again, ids), want)
    handle.set_scale("a", 1.0)
    assert torch.equal(logits(model, ids), want)
    assert all(torch.equal(t, others[n]) for n, t in handle.tensors().items())


def logits_of_rows(model, ids, names):
    with model.get_base_model().bishare.rows(names):
        return logits(model, ids)


def test_several_adapters_get_weights_as_diffusers_sets_them(base, ids):
    model = with_two(base, PLAIN)
    for layer in (
        m for m in base.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)
    ):
        layer.set_adapter(["a", "b"])
        for name, weight in (("a", 0.5), ("b", 2.0)):
            layer.set_scale(name, weight)
    together = logits(model, ids)
    plain = tiny_model("llama").eval()
    with torch.no_grad():
        for name in "ab":
            for path, added in updates(model, name).items():
                plain.get_submodule(path).weight.add_(added)
    torch.testing.assert_close(together, logits(plain, ids), rtol=1e-3, atol=1e-4)


def test_saving_tells_that_it_leaves_a_scale_out(base, ids, tmp_path):
    """And what the page of the code advises keeps it."""
    model = with_two(base, PLAIN)
    unscaled = logits(model, ids)
    model.bishare.set_scale("a", 0.5)
    want = logits(model, ids)
    with pytest.warns(BishareWarning, match=r"BS684.*`a`.* 0\.5(?s:.*)merge"):
        model.bishare.save_pretrained(tmp_path / "a")
    with pytest.warns(BishareWarning, match=r"BS684.*`a`"):
        model.save_pretrained(tmp_path / "both")
    again = PeftModel.from_pretrained(tiny_model("llama").eval(), tmp_path / "a")
    assert torch.equal(logits(again, ids), unscaled)
    model.bishare.export(tmp_path / "lora")
    again = PeftModel.from_pretrained(tiny_model("llama").eval(), tmp_path / "lora")
    torch.testing.assert_close(logits(again, ids), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_a_scale_is_finite(base, ids, scale):
    model = with_two(base, PLAIN)
    want = logits(model, ids)
    with pytest.raises(AdapterError, match="BS691"):
        base.bishare.set_scale("a", scale)
    assert torch.equal(logits(model, ids), want)


def test_what_cannot_be_scaled(base):
    handle = compile_spec(WHOLE, base).bishare
    with pytest.raises(AdapterError, match="BS667"):
        handle.set_scale("default", 0.5)
    handle = compile_spec(PLAIN, tiny_model("llama")).bishare
    handle.merge()
    with pytest.raises(AdapterError, match="BS643"):
        handle.set_scale("default", 0.5)
    assert handle["default"].scale == 1


# Other things of PEFT ------------------------------------------------------------------------------------


def test_functions_for_loras_alone_say_what_to_do(base, tmp_path):
    model = with_two(base, PLAIN)
    with pytest.raises(AdapterError, match=r"BS669.*create_lorafa_optimizer(?s:.*)freeze A"):
        peft.optimizers.create_lorafa_optimizer(model, 2, 3)
    with pytest.raises(AdapterError, match=r"BS669.*create_loraplus_optimizer(?s:.*)docs/peft.md"):
        peft.optimizers.create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=1, loraplus_lr_ratio=2
        )
    with pytest.raises(AdapterError, match=r"BS669.*rescale_adapter_scale(?s:.*)set_scale"):
        peft.helpers.rescale_adapter_scale(model, 0.5)
    with pytest.raises(AdapterError, match=r"BS669.*add_weighted_adapter(?s:.*)\"cat\"` of PEFT"):
        model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "sum")
    with pytest.raises(AttributeError, match="call `set_scale`"):
        model.bishare.scale = 0.5
    model.save_pretrained(tmp_path)
    experts = [str(tmp_path / name) for name in "ab"]
    with pytest.raises(AdapterError, match=r"BS669(?s:.*)bishare convert"):
        peft.create_arrow_model(tiny_model("llama"), experts, peft.ArrowConfig(top_k=1))


@pytest.mark.parametrize("wrapped", [True, False])
def test_conversion_to_lora_names_the_exact_way_and_it_is_exact(base, ids, tmp_path, wrapped):
    if wrapped:
        model = get_peft_model(base, BishareConfig(spec="bishare_ss"))
    else:
        model = compile_spec("bishare_ss", base)
    randomize(base)
    with pytest.raises(
        AdapterError, match=r"BS669.*convert_to_lora(?s:.*)model.bishare.export\("
    ) as refused:
        peft.convert_to_lora(model, rank=8)
    with pytest.raises(AdapterError, match="BS669"):
        peft.save_as_lora(tmp_path / "lora", model, rank=0.9)
    assert not [*(tmp_path / "lora").iterdir()]  # PEFT creates the folder first.
    assert not wrapped or not model.supports_lora_conversion()
    want = logits(model, ids)
    command = str(refused.value).partition("`model.")[2].partition("`")[0]
    eval(f"base.{command}".replace("OUT", str(tmp_path / "lora")))
    again = PeftModel.from_pretrained(tiny_model("llama").eval(), tmp_path / "lora")
    torch.testing.assert_close(logits(again, ids), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beside", BESIDE)
def test_no_mixed_batch_runs_what_peft_trains_for_all_rows(base, ids, beside):
    """PEFT would run the module of the active adapter for each row, also for rows of the base."""
    config = {"spec": PLAIN, "task_type": "CAUSAL_LM"}
    model = get_peft_model(copy.deepcopy(base), BishareConfig(**config, **beside)).eval()
    model.add_adapter("plain", BishareConfig(**config))
    for active, names in (("default", ["plain", "__base__", None]), ("plain", ["default"] * 3)):
        model.set_adapter(active)
        with pytest.raises(AdapterError, match=r"BS687.*`default`"):
            model(ids, adapter_names=names)
        with pytest.raises(AdapterError, match="BS687"), model.bishare.rows(names):
            pass
    mixed = logits_of_rows(model, ids, ["plain", "__base__", None])
    assert torch.equal(mixed[1:], logits(base, ids)[1:])


@pytest.mark.parametrize("beside", BESIDE)
def test_the_handle_loses_nothing_that_peft_trains(base, ids, beside, tmp_path):
    config = BishareConfig(spec=PLAIN, task_type="CAUSAL_LM", **beside)
    model = get_peft_model(copy.deepcopy(base), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "bishare" not in name:
                parameter.add_(1)
    want = logits(model, ids)
    assert not torch.equal(want, logits(base, ids))
    for write in (model.bishare.save_pretrained, model.bishare.export):
        with pytest.raises(AdapterError, match=r"BS686.*(lm_head|embed_tokens)`"):
            write(tmp_path / "lost")
    assert not (tmp_path / "lost").exists()
    with model.bishare.disable_adapter():
        assert torch.equal(logits(model, ids), logits(base, ids))
    assert torch.equal(logits(model, ids), want)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert torch.equal(logits(again, ids), want)
    plain = again.bishare.merge_and_unload()
    assert [*plain.state_dict()] == [*base.state_dict()]
    torch.testing.assert_close(logits(plain, ids), want, rtol=1e-4, atol=1e-4)
    model.add_adapter("plain", BishareConfig(spec=PLAIN, task_type="CAUSAL_LM"))
    for name, expected in (("plain", logits(base, ids)), ("default", want)):
        model.bishare.set_adapter(name)
        assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens_train_beside_a_spec(tied, ids, tmp_path):
    """As TRL asks for where a chat template has new tokens."""
    base = tiny_model("llama", tie_word_embeddings=tied).eval()
    config = BishareConfig(
        spec=PLAIN, task_type="CAUSAL_LM", trainable_token_indices={"embed_tokens": [10, 25]}
    )
    model = get_peft_model(copy.deepcopy(base), config)
    randomize(model.get_base_model())
    names = {n for n, p in model.named_parameters() if p.requires_grad and "bishare" not in n}
    assert any("trainable_tokens_delta" in name for name in names)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.add_(1)
    want = logits(model.eval(), ids)
    assert not torch.equal(want, logits(base, ids))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert torch.equal(logits(again, ids), want)
    plain = again.merge_and_unload()
    assert type(plain.get_input_embeddings()) is nn.Embedding
    torch.testing.assert_close(logits(plain, ids), want, rtol=1e-4, atol=1e-4)
    plain.save_pretrained(tmp_path / "plain")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(logits(dense, ids), logits(plain, ids))


def test_modules_to_save_that_match_nothing_are_reported():
    config = BishareConfig(spec=PLAIN, task_type="CAUSAL_LM", modules_to_save=["score", "lm_head"])
    with pytest.warns(
        BishareWarning, match=r"warning\[BS301\]: `score` of `modules_to_save`"
    ) as said:
        peft.get_peft_model(tiny_model("llama"), config)
    assert sum("BS301" in str(warning.message) for warning in said) == 1
