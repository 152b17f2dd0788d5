"""The shapes of a plain decoder are read off its config without transformers, and are those that it has."""

import json

import pytest
from transformers import AutoConfig

from bishare_dsl.models.decoder import plain_decoder
from bishare_dsl.models.inspect import inspect_config

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
}
TASKS = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}


def saved(folder, family, **more):
    config = AutoConfig.for_model(family, **SIZES, **more)
    config.architectures = [TASKS.get(family, "OtherForCausalLM")]
    config.save_pretrained(folder)
    return config


@pytest.mark.parametrize("family", TASKS)
@pytest.mark.parametrize("tied", [False, True])
def test_it_is_what_the_model_has(family, tied, tmp_path):
    config = saved(tmp_path, family, head_dim=16, tie_word_embeddings=tied)
    made = plain_decoder("small", tmp_path / "config.json")
    assert made is not None
    assert made == inspect_config(config, "small").model_copy(update={"model_id": None})


@pytest.mark.parametrize(
    "more",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"quantization_config": {"quant_method": "gptq"}},
        {"auto_map": {"AutoModelForCausalLM": "own.Model"}},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": None},
        {"model_type": "gpt2"},
        {"hidden_size": "wide"},
        {"hidden_size": -4},
        {"num_attention_heads": 0},
        {"tie_word_embeddings": None},
        {"vocab_size": True},
    ],
    ids=str,
)
def test_what_it_cannot_tell_is_left_to_transformers(more, tmp_path):
    saved(tmp_path, "llama")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}), encoding="utf-8")
    assert plain_decoder("small", path) is None


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_broken_config_is_left_to_who_says_what_is_wrong(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    assert plain_decoder("small", path) is None
