"""What PEFT and transformers do with an adapter, bit for bit where nothing is rounded."""

import copy
import json
import pickle
import warnings
from functools import partial

import pytest
import torch
import transformers
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model
from transformers import RobertaConfig

from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.diagnostics import AdapterError, BishareWarning, PlanError, SpecError
from bishare_dsl.folder.files import read_adapter
from bishare_dsl.peft import BishareConfig, as_peft_model
from tests.initial.test_frozen import VERA
from tests.methods.test_every_method import ONE_OF_EACH, TINY
from tests.peft.conftest import SPEC, logits
from tests.support.checks import randomize
from tests.support.families import tiny_model
from tests.support.parts import quick


@pytest.mark.parametrize("spec", quick(sorted(TINY), ONE_OF_EACH))
def test_every_shipped_spec_starts_as_its_base_and_comes_back(spec, tmp_path, ids):
    base = tiny_model("llama", hidden_size=32, head_dim=8, num_key_value_heads=4).eval()
    config = BishareConfig(spec=spec, params=TINY[spec], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(base), config).eval()
    plan = model.bishare.plan
    if spec not in ("vb_lora", "lora_xs", "tiny_lora", "corda", "pissa", "uni_lora"):
        assert torch.equal(logits(model, ids), logits(base, ids))
    assert model.get_nb_trainable_parameters()[0] == plan.trainable
    randomize(model, 1)
    want = logits(model, ids)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), logits(base, ids))
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, low_cpu_mem_usage=True)
        assert torch.equal(logits(again, ids), want)
        # Trained, drawn, by index, of the base.
        if spec in ("bishare_ke", "vera", "vb_lora", "pissa"):
            again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
            assert torch.equal(logits(again, ids), want)
            again = load_adapter(tmp_path, copy.deepcopy(base))
            assert torch.equal(logits(again, ids), want)


@pytest.mark.parametrize("spec", [SPEC, VERA])
def test_a_folder_of_ours_is_one_of_pefts_and_the_other_way_round(
    adapted, base, ids, tmp_path, spec
):
    model = adapted(spec)
    want = logits(model, ids)
    model.save_pretrained(tmp_path / "peft")
    model.bishare.save_pretrained(tmp_path / "ours")
    assert read_adapter(tmp_path / "peft").plan == read_adapter(tmp_path / "ours").plan
    for folder in ("peft", "ours"):
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / folder)
        assert not loaded.training
        assert not any(p.requires_grad for p in loaded.parameters())
        assert torch.equal(logits(loaded, ids), want)
        assert torch.equal(
            logits(load_adapter(tmp_path / folder, copy.deepcopy(base)).eval(), ids), want
        )
        assert "import bishare_dsl.peft" in (tmp_path / folder / "README.md").read_text()
        trains = PeftModel.from_pretrained(
            copy.deepcopy(base), tmp_path / folder, is_trainable=True
        )
        trains(ids, labels=ids).loss.backward()
        trained = {n for n, p in trains.named_parameters() if p.grad is not None}
        assert trained == {n for n, p in trains.named_parameters() if p.requires_grad} != set()
    fields = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (fields["peft_type"], fields["spec"]) == ("BISHARE", model.bishare.spec_text)


FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")


@pytest.mark.parametrize("train", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("adapt", ["compile_spec", "get_peft_model"])
def test_every_way_to_save_writes_the_same_bytes(adapt, train, base, ids, tmp_path):
    """bishare's and PEFT's `save_pretrained`, and a Trainer's checkpoint and last save (G14)."""
    base.name_or_path = str(tmp_path / "base")
    model = (
        compile_spec(VERA, base)
        if adapt == "compile_spec"
        else get_peft_model(base, BishareConfig(spec=VERA, task_type="CAUSAL_LM"))
    )
    handle = base.bishare
    if train:
        how = {"max_steps": 1, "save_steps": 1, "report_to": [], "use_cpu": True}
        args = transformers.TrainingArguments(str(tmp_path / "run"), disable_tqdm=True, **how)
        rows = [{"input_ids": row, "labels": row} for row in ids]
        trainer = transformers.Trainer(model=model, args=args, train_dataset=rows)
        trainer.train()
        trainer.save_model(str(tmp_path / "last"))
    handle.save_pretrained(tmp_path / "handle")
    model.save_pretrained(tmp_path / "model")
    wrapped = model if adapt == "get_peft_model" else as_peft_model(model, "CAUSAL_LM")
    wrapped.save_pretrained(tmp_path / "peft")
    found = {name: (tmp_path / "handle" / name).read_bytes() for name in FILES}
    fields = json.loads(found[FILES[0]])
    assert fields["base_model_name_or_path"] == str(tmp_path / "base")
    assert fields["task_type"] == "CAUSAL_LM"
    others = ["model", "peft", *(["last", "run/checkpoint-1"] if train else [])]
    for folder in others:
        for name in FILES[: None if folder in ("model", "peft") else 2]:
            assert (tmp_path / folder / name).read_bytes() == found[name], (folder, name)


def test_several_adapters(adapted, base, ids, tmp_path):
    """Each of a spec of its own: added, loaded, switched, run together, by row, saved by name, deleted."""
    one, other = adapted(SPEC), adapted("lora", seed=5)
    models = {"default": one, "other": other, "__base__": base}
    wanted = {name: logits(model, ids) for name, model in models.items()}
    other.save_pretrained(tmp_path / "other")
    one.load_adapter(tmp_path / "other", "other")
    assert torch.equal(logits(one, ids), wanted["default"])
    for name in ("other", "default", "other"):
        one.set_adapter(name)
        assert torch.equal(logits(one.eval(), ids), wanted[name])
        trains = {n for n, p in one.named_parameters() if p.requires_grad}
        assert trains
        assert all(f"bishare_tensors.{name}." in n for n in trains)
    names = ["default", "other", "__base__"]
    mixed = logits(one, ids, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], wanted[name][row], rtol=1e-4, atol=1e-5)
    how = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2, "pad_token_id": 0}
    tokens = one.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names, **how
    )
    for row, name in enumerate(names[:2]):
        one.set_adapter(name)
        alone = one.eval().generate(
            input_ids=ids[row : row + 1], attention_mask=torch.ones(1, 9), **how
        )
        assert torch.equal(tokens[row], alone[0])
    # Together their terms add up, and merge so.
    one.base_model.set_adapter(["default", "other"])
    together = logits(one.eval(), ids)
    assert not any(torch.equal(together, want) for want in wanted.values())
    one.base_model.merge_adapter()
    torch.testing.assert_close(logits(one, ids), together, rtol=1e-4, atol=1e-4)
    one.base_model.unmerge_adapter()
    assert torch.equal(logits(one, ids), together)
    one.set_adapter("default")
    one.save_pretrained(tmp_path / "both", selected_adapters=["other"])
    assert [path.name for path in (tmp_path / "both").iterdir() if path.is_dir()] == ["other"]
    assert read_adapter(tmp_path / "both" / "other").plan.spec == "lora"
    status = one.get_model_status()
    assert status.available_adapters == ["default", "other"]
    assert (status.active_adapters, status.enabled) == (["default"], True)
    with pytest.warns(UserWarning, match="was active which is now deleted"):
        one.delete_adapter("default")
    assert one.active_adapter == "other"
    assert torch.equal(logits(one.eval(), ids), wanted["other"])
    assert not any(".default" in name for name, _ in one.named_parameters())


def test_merging_and_leaving(adapted, base, ids):
    model = adapted()
    want = logits(model, ids)
    model.merge_adapter()
    assert model.get_layer_status()[0].merged_adapters == ["default"]
    torch.testing.assert_close(logits(model, ids), want, rtol=1e-4, atol=1e-4)
    with pytest.warns(UserWarning, match="All adapters are already merged"):
        model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(logits(model, ids), want)
    merged = adapted().merge_and_unload()
    assert [type(m) for m in merged.modules()] == [type(m) for m in base.modules()]
    torch.testing.assert_close(logits(merged, ids), want, rtol=1e-4, atol=1e-4)
    plain = model.unload()
    assert torch.equal(logits(plain, ids), logits(base, ids))
    assert not hasattr(plain, "peft_config")


def test_one_adapter_after_the_other_is_merged(adapted, ids):
    """What is merged later comes beside what is merged; the base comes back bit for bit."""
    model = adapted()
    base = {name: p.clone() for name, p in model.get_base_model().named_parameters()}
    model.add_adapter("other", BishareConfig(spec="lora", seed=4))
    randomize(model, 4)
    model.base_model.set_adapter(["default", "other"])
    want = logits(model.eval(), ids)
    model.set_adapter("default")
    model.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="additionally merging other"):
        model.merge_adapter(["other"])
    torch.testing.assert_close(logits(model.eval(), ids), want, rtol=1e-4, atol=1e-4)
    assert model.get_layer_status()[0].merged_adapters == ["default", "other"]
    with pytest.warns(UserWarning, match="nothing to do"):
        model.merge_adapter(["other"])
    model.unmerge_adapter()
    now = dict(model.get_base_model().named_parameters())
    assert all(torch.equal(now[name], p) for name, p in base.items() if "bishare" not in name)
    # One that cannot be merged leaves what is.
    with torch.no_grad():
        next(iter(model.bishare["other"].parts.tensors().values()))[0] = torch.nan
    model.merge_adapter(["default"])
    alone = logits(model, ids)
    with (
        pytest.warns(UserWarning, match="additionally"),
        pytest.raises(AdapterError, match="BS628"),
    ):
        model.merge_adapter(["other"])
    assert torch.equal(logits(model, ids), alone)
    assert model.bishare.merged_adapters == ["default"]
    with pytest.warns(UserWarning, match="nothing to do"):
        merged = model.merge_and_unload(adapter_names=["default"])
    assert torch.equal(logits(merged, ids), alone)


def test_what_a_config_says_is_checked(base, adapted):
    with pytest.raises(SpecError, match="BS1"):
        BishareConfig(spec="spec s\ntarget q_proj\nshrae x per module rank 2\n")
    with pytest.raises(PlanError, match=r"(?s)BS301.*did you mean `q_proj`"):
        get_peft_model(
            base, BishareConfig(spec="spec s\ntarget q_porj\nshare x per module rank 2\n")
        )
    assert not hasattr(base, "bishare")
    with pytest.raises(FileNotFoundError, match=r"did you mean `lora`.*lroa"):
        BishareConfig(spec="lroa")
    with pytest.raises(AdapterError, match="BS664"):
        BishareConfig(spec="lora", target_modules=["q_proj"])
    with pytest.raises(ValueError, match="different peft types"):
        adapted().add_adapter("lora", LoraConfig(target_modules=["q_proj"]))


def test_transformers_takes_adapters_in_by_itself(adapted, base, ids, tmp_path, monkeypatch):
    # For all but `load_adapter` it asks for a PEFT that is not out yet.
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.21.0")
    for spec in (SPEC, VERA):
        model = adapted(spec)
        model.save_pretrained(tmp_path)
        other = copy.deepcopy(base)
        other.load_adapter(tmp_path)
        assert torch.equal(logits(other, ids), logits(model, ids))
        other.disable_adapters()
        assert torch.equal(logits(other, ids), logits(base, ids))
        other.enable_adapters()
        other.add_adapter(BishareConfig(spec="lora"), "fresh")
        assert other.active_adapters() == ["fresh"]
        assert torch.equal(logits(other.eval(), ids), logits(base, ids))
        other.set_adapter("default")
        assert torch.equal(logits(other.eval(), ids), logits(model, ids))
        other.delete_adapter("fresh")
        assert not any(".fresh." in name for name in other.state_dict())
    fresh = copy.deepcopy(base)
    fresh.add_adapter(BishareConfig(spec=SPEC))
    assert torch.equal(logits(fresh.eval(), ids), logits(base, ids))
    fresh(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in fresh.bishare.parameters())
    inject_adapter_in_model(BishareConfig(spec=SPEC), inject := copy.deepcopy(base))
    assert torch.equal(logits(inject.eval(), ids), logits(base, ids))


def test_folders_of_other_methods_do_not_stand_beside_ours(adapted, base, ids, tmp_path):
    ours = adapted()
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=["q_proj"]))
    for model, name in ((ours, "ours"), (lora, "lora")):
        model.save_pretrained(tmp_path / name)
    for model, name in ((ours, "lora"), (lora, "ours")):
        want = logits(model, ids)
        with pytest.raises(ValueError, match="different peft types"):
            model.load_adapter(tmp_path / name, name)
        assert list(model.peft_config) == ["default"]
        assert torch.equal(logits(model, ids), want)


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("SEQ_CLS", "SequenceClassification"),
        ("TOKEN_CLS", "TokenClassification"),
        ("QUESTION_ANS", "QuestionAnswering"),
    ],
)
def test_the_head_of_a_task_is_trained_once_in_each_of_two_adapters(task, kind, tmp_path, ids):
    """PEFT adds the heads of a task to `modules_to_save`, for some after the adapter is in the model."""
    sizes = tiny_model("roberta").config.to_dict() | {"num_labels": 2}
    base = getattr(transformers, f"RobertaFor{kind}")(RobertaConfig(**sizes)).eval()

    def config():
        return BishareConfig(spec="lora", task_type=task, modules_to_save=["LayerNorm"])

    # PEFT takes an empty list for None, and does not go through that.
    get_peft_model(copy.deepcopy(base), BishareConfig(spec="lora", task_type=task))
    model = get_peft_model(copy.deepcopy(base), config())
    model.add_adapter("b", pickle.loads(pickle.dumps(config())))
    heads = [n for n, _ in model.named_parameters() if "classifier" in n or "qa_outputs" in n]
    assert not any("modules_to_save" in name for name in heads)
    assert any("LayerNorm.modules_to_save.b" in name for name, _ in model.named_parameters())
    for seed, name in enumerate(("default", "b")):
        model.set_adapter(name)
        random = torch.Generator().manual_seed(seed)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.data.add_(torch.randn(parameter.shape, generator=random), alpha=0.1)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    again.load_adapter(tmp_path / "b", "b")
    for name in ("default", "b"):
        model.set_adapter(name)
        again.set_adapter(name)
        with torch.no_grad():
            found, wanted = again.eval()(ids)[0], model.eval()(ids)[0]
            assert torch.equal(found, wanted)
            assert not torch.equal(found, base(ids)[0])


def test_it_is_said_where_plain_is_not_pefts_ia3():
    with pytest.warns(BishareWarning, match=r"not PEFT's IA3 at 4 modules with biases.*k_proj"):
        compile_spec("ia3", tiny_model("qwen2"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", BishareWarning)
        compile_spec("ia3", tiny_model("llama"))


@pytest.mark.parametrize("record", [None, {}])
def test_a_strangers_config_reads_no_file(base, record, tmp_path):
    (tmp_path / "secret").write_text("token = 1234\n")
    said = {"peft_type": "BISHARE", "spec": f"{tmp_path / 'secret'}", "bishare": record}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    for read in (PeftConfig.from_pretrained, partial(PeftModel.from_pretrained, base)):
        with pytest.raises((FileNotFoundError, AdapterError), match=r"secret|BS604") as caught:
            read(tmp_path)
        assert "1234" not in str(caught.value)


@pytest.mark.parametrize("how", [{"dtype": "bfloat16"}, {"frozen": "tensors"}])
def test_peft_saves_as_it_was_saved(how, base, tmp_path):
    """The type and the stored frozen tensors of a folder are kept, before more training and after."""
    model = compile_spec(VERA, copy.deepcopy(base))
    model.bishare.save_pretrained(tmp_path / "ours", **how)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours")
    for folder in ("once", "twice"):
        loaded.save_pretrained(tmp_path / folder)
        for name in FILES:
            kept = (tmp_path / "ours" / name).read_bytes()
            assert (tmp_path / folder / name).read_bytes() == kept, (folder, name)
