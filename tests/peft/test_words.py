"""The table of PEFT's words: each spec does what PEFT does, and each place that meets such a word prints it."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

from bishare_dsl import compile_spec, plan_spec
from bishare_dsl.diagnostics.words import peft_advice
from bishare_dsl.peft import BishareConfig
from bishare_dsl.resources import peft_words
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.train.request import unknown_argument

WORDS = peft_words()
WITH_EXAMPLE = {name: word for name, word in WORDS.items() if word.example}
CONFIG = {"r": 8, "target_modules": ["q_proj", "v_proj"]}


def model_for(name):
    if name == "target_parameters":
        return tiny_model("mixtral")
    return tiny_model("llama", tie_word_embeddings=False, attention_bias=name == "bias")


def test_the_table_has_every_field():
    assert {field.name for field in fields(LoraConfig)} == WORDS.keys()


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")  # Of biases that train.
@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_the_spec_of_a_row_does_what_its_example_does(name):
    example = eval(f"dict({WORDS[name].example})")
    theirs = get_peft_model(model_for(name), LoraConfig(**(CONFIG | example)))
    plan = compile_spec(WORDS[name].spec, model_for(name)).bishare.plan
    assert plan.trainable == theirs.get_nb_trainable_parameters()[0]
    layers = {
        path.removeprefix("base_model.model."): (layer.r["default"], layer.scaling["default"])
        for path, layer in theirs.named_modules()
        if hasattr(layer, "lora_A") and layer.r
    }
    low_rank = [term for term in plan.terms if not term.is_magnitude]
    assert {term.site: (term.rank, term.scale) for term in low_rank} == layers
    assert {term.dropout for term in low_rank} == {example.get("lora_dropout", 0.0)}


def test_a_row_without_an_example_has_a_spec_that_compiles_or_none():
    for name, word in WORDS.items():
        if word.spec:
            assert plan_spec(word.spec, model_for(name)).trainable > 0, name


@pytest.mark.parametrize("name", sorted(WORDS.keys() - {f.name for f in fields(BishareConfig)}))
def test_a_config_and_a_training_say_what_to_write(name):
    with pytest.raises(TypeError, match=re.escape(peft_advice(name, "1") or "")):
        BishareConfig(spec="bishare_ss", **{name: 1})
    said = unknown_argument(name, ()).help or ""
    assert said.endswith(peft_advice(name) or "") or name == "r"


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("rank_pattern", '{"q_proj": 16, "o_proj": 4}', "match kind { q_proj: 16; o_proj: 4; else"),
        ("layers_to_transform", "0, 1, 2, 3", "layer in {0, 1, 2, 3}"),
        ("modules_to_save", "['lm_head', 'embed_tokens']", "train lm_head, embed_tokens"),
        ("target_modules", "'all-linear'", 'target kind "*"'),
        ("lora_alpha", "", "alpha ..."),
    ],
)
def test_the_advice_has_the_value_of_its_reader(name, given, said):
    assert said in (peft_advice(name, given) or "")


def test_a_param_of_the_spec_is_named_first():
    with pytest.raises(TypeError, match=r'`params=\{"r": 8\}` sets a param of the spec'):
        BishareConfig(spec="lora", r=8)
    with pytest.raises(TypeError, match="did you mean `params`"):
        BishareConfig(spec="lora", param={"r": 8})
    with pytest.raises(TypeError, match=r"name the spec: `BishareConfig\(spec='mine.share'\)`"):
        BishareConfig("mine.share")


def test_a_field_of_a_newer_peft_is_dropped_with_a_warning(base, tmp_path):
    get_peft_model(base, BishareConfig(spec="lora")).save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    text = config.read_text("utf-8")
    config.write_text(text.replace("{", '{\n  "of_tomorrow": 1,', 1), "utf-8")
    with pytest.warns(UserWarning, match=r"Unexpected keyword arguments \['of_tomorrow'\]"):
        assert PeftConfig.from_pretrained(str(tmp_path)).peft_type == "BISHARE"
    with pytest.warns(UserWarning, match="Unexpected keyword arguments"):
        PeftModel.from_pretrained(tiny_model("llama"), tmp_path)


def test_the_page_shows_the_table():
    """Replace the rows in docs/peft.md by those printed here."""
    rows = {}
    for name, word in WORDS.items():
        rows.setdefault(word.advice, []).append(f"`{word.example or name}`")
    table = [f"| {', '.join(names)} | {advice} |" for advice, names in rows.items()]
    page = Path("docs/peft.md").read_text("utf-8").partition("## `LoraConfig` as a spec")[2]
    assert "\n".join(table) in page, "\n".join(table)
