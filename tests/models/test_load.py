"""`--model`: what every form of it means, and what is said when it means nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from bishare_dsl.diagnostics import ModelError
from bishare_dsl.models import (
    architecture_of,
    inspect_model,
    load_model,
    meta_model,
    preset,
    resolve,
)
from tests.support.families import tiny_model


def refused(code, function, *arguments):
    with pytest.raises(ModelError) as caught:
        function(*arguments)
    (problem,) = caught.value.problems
    assert problem.code == code, problem
    assert str(caught.value)
    return problem


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tiny-llama"
    tiny_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "tiny-llama"))


@pytest.fixture
def no_network(monkeypatch):
    """The Hub as it is behind a cable that is cut; a second request would be a retry."""
    import huggingface_hub

    asked = []

    def cut(url, **_):
        asked.append(url)
        assert len(asked) == 1, "asked twice"
        raise OSError("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", cut)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


# What a name means.


def test_a_preset_wins_over_a_folder_of_its_name(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, tmp_path / "llama-7b")
    assert resolve("llama-7b").kind == "preset"
    assert resolve("./llama-7b").kind == "folder"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "a checkpoint folder"),
        (["bishare_config.json"], "the adapter was made for"),
        (["adapter_config.json"], "the adapter was made for"),
        (["model.gguf"], "model.gguf`"),
    ],
)
def test_a_folder_that_is_no_checkpoint(files, said, tmp_path):
    for file in files:
        (tmp_path / file).write_text("{}")
    assert said in (refused("BS503", architecture_of, str(tmp_path)).help or "")


# Shapes.


def test_a_meta_model_has_shapes_and_no_weights(saved):
    for name in (str(saved), str(saved / "config.json"), "smollm2-135m"):
        model = meta_model(name)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        assert inspect_model(model, "x") == architecture_of(name).model_copy(update={"name": "x"})
    assert inspect_model(meta_model("llama-7b")).model_id == preset("llama-7b").model_id


def test_code_that_comes_with_a_checkpoint_is_not_run(tmp_path):
    fields = {"model_type": "llama", "auto_map": {"AutoConfig": "evil.Evil"}, "vocab_size": 8}
    (tmp_path / "config.json").write_text(json.dumps({**fields, "num_hidden_layers": 1}))
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: model_type = 'llama'\n"
    )
    assert architecture_of(str(tmp_path)).family == "llama"
    assert not (tmp_path / "ran").exists()


# Weights.


def test_loading_gives_the_saved_weights(saved):
    model, tokenizer = load_model(str(saved))
    assert tokenizer is None
    assert not model.training
    for name, tensor in tiny_model("llama").state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert load_model(str(saved), dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert load_model(str(saved), dtype="float16", device="cpu")[0].dtype == torch.float16


def test_shapes_alone_cannot_be_loaded(saved):
    help = refused("BS512", load_model, "llama-7b").help or ""
    assert "baffo32/decapoda-research-llama-7B-hf" in help
    refused("BS512", load_model, str(saved / "config.json"))


def test_one_tensor_missing_is_not_drawn_at_random_and_weights_are_not_cut_short(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "layers.1.mlp.up_proj" in refused("BS513", load_model, str(folder)).message
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused("BS513", load_model, str(folder))


# GGUF.


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    """A Llama of one block in float32, as llama.cpp's converter writes it, without a tokenizer."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("a tiny one")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(64)
    shapes = {
        "token_embd": (64, 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_gate": (48, 32),
        "blk.0.ffn_up": (48, 32),
        "blk.0.ffn_down": (32, 48),
    }
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape, generator=generator).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_gives_a_plain_model_that_can_be_saved(gguf_file, tmp_path):
    model, tokenizer = load_model(str(gguf_file))
    assert tokenizer is None
    up = model.model.layers[0].mlp.up_proj
    assert type(up) is torch.nn.Linear
    assert up.weight.dtype == torch.float32
    assert up.weight.std() > 0.5
    found = architecture_of(str(gguf_file))
    assert found == inspect_model(model, "tiny")
    assert (found.layers, len(found.sites), found.model_id) == (1, 7, None)
    assert meta_model(str(gguf_file)).device.type == "meta"
    model.save_pretrained(tmp_path / "dense")
    again, _ = load_model(str(tmp_path / "dense"))
    assert torch.equal(again.model.layers[0].mlp.up_proj.weight, up.weight)


def test_gguf_files_that_are_damaged(gguf_file, tmp_path):
    whole = gguf_file.read_bytes()
    for length in (0, 3, 4, 30, 300, len(whole) // 2, len(whole) - 4000):
        damaged = tmp_path / f"{length}.gguf"
        damaged.write_bytes(whole[:length])
        refused("BS511", load_model, str(damaged))
    (tmp_path / "html.gguf").write_text("<html>")
    assert "GGUF" in refused("BS511", architecture_of, str(tmp_path / "html.gguf")).message


# The Hub.


@pytest.fixture
def cached(saved, tmp_path, monkeypatch):
    """A Hugging Face cache that holds the model `owner/tiny`."""
    repository = tmp_path / "hub" / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    shutil.copytree(saved, repository / "snapshots" / ("a" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return "owner/tiny"


def test_a_cached_model_works_without_the_hub(cached, no_network):
    found = architecture_of(cached)
    assert found.name == found.model_id == cached
    model, tokenizer = load_model(cached)
    assert inspect_model(model) == found
    assert tokenizer is None
