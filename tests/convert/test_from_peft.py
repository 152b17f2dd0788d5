"""A LoRA that PEFT has saved, as an adapter: what it computes is what PEFT computes."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bishare_dsl import compile_spec, load_adapter, parse_spec
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.folder.files import is_peft, read_adapter
from bishare_dsl.models import architecture_of
from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.serve.vllm.folder import read_any
from tests.support.checks import randomize
from tests.support.families import tiny_inputs, tiny_model
from tests.support.stored import import_peft

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

PATTERNS = {
    "r": 4,
    "lora_alpha": 6,
    "target_modules": ["q_proj", "k_proj", "down_proj"],
    "rank_pattern": {"k_proj": 2, r"layers\.1\.mlp\.down_proj": 3},
    "alpha_pattern": {"q_proj": 16, r"^model\.layers\.0\.mlp\.down_proj": 5},
}
SETTINGS = {
    "plain": ("llama", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}),
    "patterns": ("llama", PATTERNS),
    "rsLoRA": ("llama", {"r": 3, "lora_alpha": 8, "use_rslora": True, "target_modules": ["v_proj"]}),
    "some layers": ("llama", {"r": 2, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]}),
    "Conv1D": ("gpt2", {"r": 2, "target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True}),
    "ends": ("llama", {"r": 2, "target_modules": ["lm_head", "embed_tokens", "q_proj"]}),
    "all": ("qwen3", {"r": 2, "target_modules": "all-linear", "lora_dropout": 0.25}),
}  # fmt: skip


def saved(folder, base, **settings):
    """A PEFT model whose LoRA, and whatever else it trains, does something, in a folder too."""
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", **settings})
    model = peft.get_peft_model(tiny_model(base) if isinstance(base, str) else base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.normal_(0, 0.2)
            elif parameter.requires_grad and "lora_" not in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder)
    return model.eval()


def logits(model):
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(1, 13).view(2, 6)).logits
    return found


@pytest.mark.parametrize(("family", "settings"), SETTINGS.values(), ids=SETTINGS)
@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
def test_it_computes_what_peft_computes(family, settings, tmp_path):
    theirs = saved(tmp_path / "peft", family, **settings)
    ours = load_adapter(tmp_path / "peft", tiny_model(family))  # As it is, without importing.
    want = logits(theirs)
    assert (want - logits(tiny_model(family))).abs().max() > 0.1
    torch.testing.assert_close(logits(ours), want, rtol=1e-5, atol=1e-5)
    text = import_peft(
        tmp_path / "peft", architecture_of(tiny_model(family)), tmp_path / "ours"
    ).spec_text
    assert read_adapter(tmp_path / "ours").spec_text == text
    again = load_adapter(tmp_path / "ours", tiny_model(family))
    assert torch.equal(logits(again), logits(ours))
    # Each value once, as PEFT has it.
    trained = sum(p.numel() for name, p in theirs.named_parameters() if "lora_" in name)
    assert again.bishare.plan.trainable == trained
    assert {term.dropout for term in again.bishare.plan.terms} == {settings.get("lora_dropout", 0)}


@pytest.mark.parametrize(
    "change",
    [
        {"exclude_modules": ["layers.1.self_attn.q_proj"]},
        {"exclude_modules": r".*\.1\..*q_proj"},
        {"layers_to_transform": [0]},
        {"layers_to_transform": 0, "layers_pattern": "layers"},
        {"target_modules": ["v_proj", "layers.0.self_attn.q_proj"]},
        {"target_modules": r".*(v_proj|0.self_attn.q_proj)"},
    ],
)
def test_factors_that_peft_drops_are_not_used(change, tmp_path):
    """They were part of the adapter, without a word."""
    saved(tmp_path / "peft", "llama", r=2, target_modules=["q_proj", "v_proj"])
    config = tmp_path / "peft" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    theirs = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "peft")
    assert not any("layers.1.self_attn.q_proj.lora_A" in name for name in theirs.state_dict())
    with pytest.raises(
        AdapterError, match=r"BS656.*drops the factors of `model.layers.1"
    ) as caught:
        load_adapter(tmp_path / "peft", tiny_model("llama"))
    problem = caught.value.problems[0]
    assert all(f"`{name}`" in problem.message for name in change)
    assert problem.help == "if a server uses them, write what selects them on this base in a copy"
    assert len(caught.value.problems) == 1


def test_groups_of_a_spec_are_told_apart_by_kind_and_layer(tmp_path):
    saved(tmp_path / "peft", "llama", **PATTERNS)
    architecture = architecture_of(tiny_model("llama"))
    text = import_peft(tmp_path / "peft", architecture, tmp_path / "ours").spec_text
    spec = parse_spec(text)
    found = [(share.rank, share.scale) for share in spec.shares]
    assert found == [(4, 4), (2, 3), (4, 1.25), (3, 2)]
    assert "where down_proj and layer in {1}" in text
    plan = read_adapter(tmp_path / "ours").plan
    assert {len(terms) for path, terms in plan.terms_of.items()} == {1}


# What PEFT has trained in full ----------------------------------------------------------------------


def classifier():
    torch.manual_seed(1)
    config = tiny_model("bert", num_labels=3).config
    return transformers.BertForSequenceClassification(config).eval()


WHOLE = {
    "a head": ("llama", {"modules_to_save": ["lm_head"]}, 'train path "lm_head.weight"'),
    "norms": ("llama", {"modules_to_save": ["input_layernorm", "model.norm"]}, 'path "model.layers.0.input_layernorm.weight", path'),
    "biases": ("qwen2", {"bias": "all"}, "layers.1.self_attn.k_proj.bias"),
    "biases of targets": ("qwen2", {"bias": "lora_only"}, "layers.1.self_attn.q_proj.bias"),
    "some": ("llama", {"modules_to_save": ["layers.1.input_layernorm"]}, "layers.1.input_layernorm"),
    "a classifier": (classifier, {"task_type": "SEQ_CLS"}, 'train path "classifier.weight"'),
    "no task": (classifier, {"task_type": None}, "train none"),
}  # fmt: skip


@pytest.mark.parametrize(("family", "settings", "said"), WHOLE.values(), ids=WHOLE)
@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
def test_what_it_trains_in_full_comes_along(family, settings, said, tmp_path):
    def base():
        return tiny_model(family) if isinstance(family, str) else family()

    targets = ["query"] if family is classifier else ["q_proj", "down_proj"]
    theirs = saved(tmp_path / "peft", base(), r=2, target_modules=targets, **settings)
    other = base()  # Another classifier is drawn for it: the adapter has its own.
    if settings.get("task_type") == "SEQ_CLS":
        torch.nn.init.normal_(other.classifier.weight)
    ours = load_adapter(tmp_path / "peft", other)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-5)
    assert said in " ".join(ours.bishare.spec_text.split())
    ours.bishare.save_pretrained(tmp_path / "ours")
    assert torch.equal(logits(load_adapter(tmp_path / "ours", base())), logits(ours))


def test_tables_of_one_name_and_of_other_ranks(tmp_path):
    """An encoder's and a decoder's `embed_tokens`, where they are two weights (found by `make hunt`)."""
    base = tiny_model("bart", tie_word_embeddings=False)
    text = (
        "spec s\ntarget embed_tokens\n"
        'share x where path "model.encoder.embed_tokens" per module rank 2\n'
        'share y where path "model.decoder.embed_tokens" per module rank 3\n'
    )
    ours = compile_spec(text, base)
    randomize(ours)
    ours.bishare.export(tmp_path / "exported")
    again = load_adapter(tmp_path / "exported", tiny_model("bart", tie_word_embeddings=False))
    with torch.no_grad():
        found, expected = (model.eval()(**tiny_inputs(model)).logits for model in (again, ours))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
@pytest.mark.parametrize("writer", ["bishare", "peft"])
def test_tied_tables_that_are_trained_in_full(writer, tmp_path):
    def base():
        return tiny_model("qwen2", tie_word_embeddings=True)

    folder = tmp_path / "lora"
    if writer == "bishare":
        text = "spec s\ntarget q_proj\ntrain heads, embeddings\nshare x per module rank 2\n"
        model = compile_spec(text, base())
        randomize(model, 1)
        model.bishare.export(folder)
    else:
        tables = ["embed_tokens", "lm_head"]
        how = {"modules_to_save": tables, "ensure_weight_tying": True, "r": 2}
        model = saved(folder, base(), target_modules=["q_proj"], **how)
    torch.testing.assert_close(logits(load_adapter(folder, base())), logits(model))


# What is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora_bias": True}, "it has `lora_bias`"),
        ({"peft_type": "LOHA"}, "its `peft_type` is LOHA"),
        ({"init_lora_weights": "pissa"}, "`init_lora_weights` is pissa"),
        ({"init_lora_weights": "lora_ga"}, "is lora_ga, which changes the base"),
    ],
)
def test_more_than_a_plain_lora(change, said, tmp_path):
    saved(tmp_path / "peft", "llama", **PATTERNS)
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    model = tiny_model("llama")
    with pytest.raises(AdapterError, match=rf"BS656.*{said}"):
        load_adapter(tmp_path / "peft", model)
    assert not hasattr(model, "bishare")


def test_dora_as_peft_saves_it(tmp_path):
    saved(tmp_path / "peft", "llama", use_dora=True, **SETTINGS["plain"][1])
    model = tiny_model("llama")
    with pytest.raises(AdapterError, match=r"BS656.*it is a DoRA"):
        read_any(tmp_path / "peft", inspect_model(model))  # As a server does.
    plan = load_adapter(tmp_path / "peft", model).bishare.plan
    assert all(plan.magnitude(site.path) is not None for site in plan.sites)


WRONG = (
    ("r", 0, "r: .*greater than 0"),
    ("r", None, "r: .*integer"),
    ("r", 10**400, "r: .*less than"),
    ("lora_alpha", 10**400, "lora_alpha: "),
    *(("lora_alpha", float(value), "lora_alpha: .*finite") for value in ("inf", "nan")),
    *(("lora_dropout", value, "lora_dropout: ") for value in ("x", [1], float("nan"), -1, 1)),
    *(("rank_pattern", value, "rank_pattern: .*dictionary") for value in (["x"], "abc", 5)),
    ("rank_pattern", {"k_proj": 0}, "rank_pattern.k_proj: "),
    ("rank_pattern", {"(": 1}, "rank and alpha of its modules: .*unterminated subpattern"),
    ("alpha_pattern", {"q_proj": float("inf")}, "alpha_pattern.q_proj: .*finite"),
    ("target_parameters", 5, "target_parameters: "),
    ("base_model_name_or_path", ["x"], "base_model_name_or_path: .*string"),
)


def test_broken_files(tmp_path):
    def broken(content, file, said):
        path = tmp_path / "peft" / file
        kept = path.read_bytes()
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save_file(content, path)
        with pytest.raises(AdapterError, match=said):
            load_adapter(tmp_path / "peft", tiny_model("llama"))
        path.write_bytes(kept)

    saved(tmp_path / "peft", "llama", **PATTERNS)
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    name = next(name for name in tensors if "lora_B" in name)
    one_less = {key: value for key, value in tensors.items() if key != name}
    other = {**tensors, "base_model.model.lm_head.weight": torch.ones(1)}
    broken(b"{", "adapter_config.json", "BS604")
    broken(b"[]", "adapter_config.json", "BS604.*`peft_type` is not")
    broken(b"not safetensors", "adapter_model.safetensors", "BS608")
    broken({}, "adapter_model.safetensors", "BS608.*no tensors")
    broken(one_less, "adapter_model.safetensors", r"BS613.*factors .*\(\)")
    broken(other, "adapter_model.safetensors", r"BS613.*`lm_head.weight` is \(64, 32\) in it")
    broken(
        {**tensors, name: tensors[name] + 0j},
        "adapter_model.safetensors",
        "BS608.*lora_B.*is complex64",
    )
    other = {**tensors, "base_model.model.rotary": torch.ones(1)}
    broken(other, "adapter_model.safetensors", "BS656.*`rotary` is neither")
    for key, value, said in WRONG:
        changed = json.dumps({**config, key: value}).encode()
        broken(changed, "adapter_config.json", f"BS608.*{said}")
    assert is_peft(tmp_path / "peft")
    (tmp_path / "peft" / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="BS608"):
        load_adapter(tmp_path / "peft", tiny_model("llama"))


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_config_with_endless_patterns_is_refused(field, tmp_path):
    """Each would be compiled, and tried on each module: 100,000 took 40 seconds."""
    saved(folder := tmp_path / "lora", "llama", r=2, target_modules=["q_proj"])
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {field: {f"x{i}": 2 for i in range(100_000)}}))
    with pytest.raises(AdapterError, match=r"BS608.*at most 10000 items"):
        load_adapter(folder, tiny_model("llama"))


def test_a_file_with_more_tensors_than_the_base_has_places_is_refused(tmp_path):
    saved(folder := tmp_path / "lora", "llama", r=2, target_modules=["q_proj"])
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file) | {f"x{i}": torch.empty(0) for i in range(2000)}
    save_file(tensors, file)
    with pytest.raises(AdapterError, match=r"BS608.*it has 2,004 tensors, and may have"):
        load_adapter(folder, tiny_model("llama"))
