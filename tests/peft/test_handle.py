"""One handle: what `compile_spec`, `get_peft_model` and transformers put into a model is the same object."""

import copy
import signal
import warnings
from itertools import product

import huggingface_hub
import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.utils import PushToHubMixin, hub

from bishare_dsl import compile_spec
from bishare_dsl.adapted.handle import Handle
from bishare_dsl.diagnostics import AdapterError, ModelError
from bishare_dsl.peft import BishareConfig
from bishare_dsl.peft.method import as_peft_model
from bishare_dsl.testing.models import tiny_model
from tests.peft.conftest import SPEC, logits, with_two
from tests.support.checks import randomize

PLAIN = "spec plain\ntarget q_proj, down_proj\nshare a per module rank 2\n"


# The same object ------------------------------------------------------------------------------------------


def test_three_ways_put_the_same_into_a_model(base, ids):
    config = BishareConfig(spec=SPEC, seed=3)
    ways = [
        compile_spec(SPEC, copy.deepcopy(base), seed=3),
        get_peft_model(copy.deepcopy(base), config).get_base_model(),
        inject_adapter_in_model(config, copy.deepcopy(base)),
    ]
    for model in ways:
        assert type(model) is type(base)
        assert type(model.bishare) is Handle
        assert isinstance(model.bishare, BaseTunerLayer)
        assert [*model.peft_config] == ["default"]
        assert isinstance(model.peft_config["default"], BishareConfig)
        assert torch.equal(logits(model, ids), logits(base, ids))
    tensors = [model.bishare.tensors() for model in ways]
    assert all(
        torch.equal(tensors[0][name], other[name]) for other in tensors for name in tensors[0]
    )
    trained = [{n for n, p in model.named_parameters() if p.requires_grad} for model in ways]
    assert trained[0] == trained[1] == trained[2] != set()


def test_a_peft_model_of_several_adapters(base, ids, tmp_path):
    model = with_two(base, PLAIN).get_base_model()
    model.bishare.set_adapter("b")
    want = logits(model, ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        wrapped = as_peft_model(model, "CAUSAL_LM")
    assert {*wrapped.peft_config} == {"a", "b"}
    assert wrapped.active_adapters == ["b"]
    wrapped.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model("llama").eval(), tmp_path / "b")
    assert torch.equal(logits(again, ids), want)


def test_every_level_agrees_on_the_adapters_that_run(base):
    """`active_adapters` of the `PeftModel` was stale after `model.bishare.set_adapter`."""
    model = with_two(base, PLAIN)
    handle = model.get_base_model().bishare
    for change, given, running in (
        (handle.set_adapter, "b", ["b"]),
        (model.base_model.set_adapter, "a", ["a"]),
        (handle.set_adapter, ["b", "a"], ["b", "a"]),
        (model.set_adapter, "b", ["b"]),
        (handle.delete_adapter, "b", ["a"]),
    ):
        change(given)
        assert [*handle.active] == model.base_model.active_adapters == running
        assert model.active_adapters == running


def test_without_an_adapter_nothing_is_left(base, ids):
    before, want = {*vars(base)}, logits(base, ids)
    model = compile_spec(PLAIN, base)
    with pytest.raises(ModelError, match="BS401"):
        compile_spec(PLAIN, model)
    model.bishare.unload()
    assert {*vars(base)} == before
    assert torch.equal(logits(base, ids), want)


# A second adapter of a name, and configs as data (F14, F15) ----------------------------------------------


def test_nothing_changes_a_config_that_a_user_holds(base, ids, tmp_path):
    config = BishareConfig(spec=PLAIN, seed=5, params={}, task_type="CAUSAL_LM")
    before = copy.deepcopy(vars(config))

    def same():
        # PEFT itself notes the name of the base, which for these is none.
        return vars(config) == before

    model = get_peft_model(base, config)
    assert same()
    randomize(base)
    model.save_pretrained(tmp_path / "one")
    of_model = copy.deepcopy(vars(model.peft_config["default"]))
    base.bishare.save_pretrained(tmp_path / "two")
    model.add_adapter("other", config)
    model.set_adapter("other")
    model.merge_adapter()
    model.unmerge_adapter()
    model.delete_adapter("other")
    assert same()
    assert {k: v for k, v in vars(model.peft_config["default"]).items() if k != "_record"} == {
        k: v for k, v in of_model.items() if k != "_record"
    }
    wide = tiny_model("llama", num_hidden_layers=3)  # Another base takes it, too.
    for held in (config, model.peft_config["default"]):
        other = get_peft_model(copy.deepcopy(wide), held)
        assert other.get_base_model().bishare.plan.base.layers == 3
    assert same()
    loaded = PeftModel.from_pretrained(tiny_model("llama").eval(), tmp_path / "one")
    assert torch.equal(logits(loaded, ids), logits(model.eval(), ids))
    get_peft_model(copy.deepcopy(wide), loaded.peft_config["default"])


# Merging, switching, disabling (F6, F7) ------------------------------------------------------------------


def test_enabling_what_is_enabled(base, ids):
    handle = compile_spec(PLAIN, base).bishare
    randomize(base)
    want = logits(base.eval(), ids)
    for enabled in (True, False, False, True, True):
        handle.enable_adapters(enabled)
        assert handle.disabled is not enabled
    assert torch.equal(logits(base, ids), want)
    with handle.disable_adapter():
        handle.enable_adapters(True)
        assert handle.disabled
        handle.enable_adapters(False)
    assert handle.disabled
    handle.enable_adapters(True)
    assert handle.merge().modules
    assert torch.allclose(logits(base, ids), want, atol=1e-4)


@pytest.mark.parametrize("safe", [False, True])
def test_merging_an_adapter_that_does_not_run(base, ids, safe):
    model, plain = with_two(base, PLAIN), {n: p.clone() for n, p in base.named_parameters()}
    handle = base.bishare
    of = {}
    for name in "ba":
        model.set_adapter(name)
        of[name] = logits(model, ids)
    model.merge_adapter(adapter_names=["b"], safe_merge=safe)
    assert handle.merged_adapters == ["b"]
    assert torch.allclose(logits(model, ids), of["b"], atol=1e-4)
    model.merge_adapter(adapter_names=["a"], safe_merge=safe)
    assert handle.merged_adapters == ["b", "a"]
    model.unmerge_adapter()
    assert handle.active == ("a",)
    assert all(torch.equal(p, plain[n]) for n, p in base.named_parameters() if n in plain)
    assert torch.equal(logits(model, ids), of["a"])


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("merged", [False, True])
def test_a_refused_merge_changes_nothing(base, ids, safe, merged):
    model = with_two(base, PLAIN)
    next(iter(base.bishare["b"].tensors().values())).data.fill_(torch.nan)
    if merged:
        model.merge_adapter(adapter_names=["a"])
    want, weights = logits(model, ids), {n: p.clone() for n, p in base.named_parameters()}
    words = "^NaNs detected in the merged weights. The adapter b seems to be broken$"  # PEFT's.
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(
            ValueError if safe else AdapterError, match=words if safe else "BS628"
        ) as refused:
            merge(adapter_names=["b"], safe_merge=safe)
        assert not safe or "BS628" in str(refused.value.__cause__)
        assert base.bishare.active == ("a",)
        assert base.bishare.merged == merged
        assert torch.equal(logits(model, ids), want)
        assert all(
            torch.equal(p, weights[n]) for n, p in base.named_parameters() if not p.isnan().any()
        )


# Saving through the methods of transformers that are wrapped (F2, F38) -----------------------------------


def test_other_wrapped_methods_reach_nothing(base, tmp_path, ids, monkeypatch):
    """`generate` and `resize_token_embeddings` of an adapted model write and fetch nothing, as those of a plain one."""
    monkeypatch.chdir(tmp_path)
    reached, own = [], [(PushToHubMixin, "_upload_modified_files"), (hub, "hf_hub_download")]
    names = ["create_repo", "upload_file", "upload_folder", "create_commit", "hf_hub_download"]
    for owner, name in [*product([huggingface_hub, huggingface_hub.HfApi], names), *own]:
        monkeypatch.setattr(owner, name, lambda *given, **_: reached.append(given))
    model = compile_spec("spec x\ntarget q_proj\nshare a per module rank 1\n", base)
    with model.bishare.rows(["default", None]):
        model.generate(ids[:1].expand(2, -1), max_new_tokens=2, do_sample=False)
    model.resize_token_embeddings(70)
    assert model.get_input_embeddings().weight.shape[0] == 70
    assert not reached
    assert not [*tmp_path.iterdir()]


def test_what_was_merged_runs_if_what_ran_before_is_deleted(base, ids):
    model = with_two(base, PLAIN)
    model.set_adapter("b")
    want = logits(model, ids)
    model.set_adapter("a")
    model.merge_adapter(["b"])
    model.delete_adapter("a")
    model.unmerge_adapter()
    assert model.active_adapters == ["b"]
    assert torch.equal(logits(model, ids), want)


@pytest.mark.parametrize("trains", [True, False])
def test_what_replaces_a_deleted_adapter_trains_only_if_that_trained(base, trains):
    """After `delete_adapter` of the active one, the next adapter of a frozen model would train."""
    model = with_two(base, PLAIN)
    model.bishare.set_adapter("b", inference_mode=not trains)
    with pytest.warns(UserWarning, match="Setting active adapter to a"):
        model.delete_adapter("b")
    assert {p.requires_grad for p in base.bishare["a"].tensors().values()} == {trains}


# Modules that PEFT trains with adapters -------------------------------------------------------------------


def with_heads(base):
    """A `PeftModel` of adapters a, which runs, and b, each with a head of PEFT's; and what each answers."""
    model = None
    for seed, name in enumerate("ab"):
        config = BishareConfig(
            spec=PLAIN, seed=seed, task_type="CAUSAL_LM", modules_to_save=["lm_head"]
        )
        if model is None:
            model = get_peft_model(base, config, name)
        else:
            model.add_adapter(name, config)
        model.set_adapter(name)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.2)
    ids = torch.tensor([[5, 9, 7]])
    answers = {}
    for name in "ba":
        model.set_adapter(name)
        answers[name] = logits(model.eval(), ids)
    return model, answers


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_two_modules_of_peft_do_not_run_together(base):
    ids = torch.tensor([[5, 9, 7]])
    model, answers = with_heads(base)
    before = trained(model)
    for switch in (model.bishare.set_adapter, model.base_model.set_adapter):
        with pytest.raises(AdapterError, match=r"BS665.*`lm_head`"):
            switch(["a", "b"])
        with pytest.raises(AdapterError, match="BS665"):
            model.merge_adapter(["a", "b"])
        assert model.active_adapters == ["a"]
        assert trained(model) == before
        assert torch.equal(logits(model, ids), answers["a"])
    model.bishare.set_adapter([])
    assert torch.equal(logits(base, ids), logits(tiny_model("llama").eval(), ids))


# What fails or is interrupted ------------------------------------------------------------------------------


def test_ctrl_c_leaves_no_half_of_a_merge(base, ids, monkeypatch):
    """Also if it comes again while the merge is undone. `test_interrupted` raises at each line of all changes."""
    model = with_two(base, PLAIN)
    want, real, copies = logits(model, ids), torch.Tensor.copy_, 0

    def copy(*args, **kwargs):
        nonlocal copies
        copies += 1
        if copies >= 3:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    with pytest.raises(KeyboardInterrupt):
        model.merge_adapter()
    monkeypatch.undo()
    assert copies > 3
    assert not base.bishare.merged
    assert torch.equal(logits(model, ids), want)
