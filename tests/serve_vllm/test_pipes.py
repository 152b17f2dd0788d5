"""Folders that whoever opens them waits for: vLLM's own resolver would stop its server there, `/health` included."""

import asyncio
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from vllm.lora.resolver import LoRAResolverRegistry
from vllm.plugins.lora_resolvers.filesystem_resolver import register_filesystem_resolver

from bishare_dsl import compile_spec
from bishare_dsl.folder.files import CONFIG, TENSORS
from bishare_dsl.serve.vllm.check import check_folder, start_checks
from bishare_dsl.serve.vllm.manager import _place
from bishare_dsl.serve.vllm.plugin import register_resolver
from tests.support.families import tiny_model


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder of adapters; vLLM's own resolver of it was there first."""
    tiny_model("llama").save_pretrained(tmp_path / "base")
    model = tiny_model("llama")
    compile_spec("spec s\ntarget q_proj\nshare x per module rank 2\n", model)
    model.bishare.save_pretrained(tmp_path / "good")
    monkeypatch.setenv("VLLM_LORA_RESOLVER_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("BISHARE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(LoRAResolverRegistry, "resolvers", {})
    served = SimpleNamespace(model=str(tmp_path / "base"), hf_config=model.config)
    start_checks(SimpleNamespace(model_config=served, additional_config={}))
    register_filesystem_resolver()
    register_resolver()
    return tmp_path


def waits(*_):
    raise AssertionError("it waits")


def resolve(root, name):
    """As vLLM's server does: each resolver in turn, until one knows the name. Waiting for a pipe is an error."""
    signal.signal(signal.SIGALRM, waits)
    signal.alarm(60)
    try:
        return ask(root, name)
    finally:
        signal.alarm(0)


def ask(root, name):
    for key in LoRAResolverRegistry.get_supported_resolvers():
        resolver = LoRAResolverRegistry.get_resolver(key)
        if found := asyncio.run(resolver.resolve_lora(str(root / "base"), name)):
            return found
    return None


@pytest.mark.parametrize("file", [CONFIG, TENSORS])
@pytest.mark.parametrize(
    "put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"]
)
def test_a_file_that_is_none_is_an_error_of_the_request(root, file, put):
    shutil.copytree(root / "good", root / "bad")
    (root / "bad" / file).unlink()
    put(root / "bad" / file)
    with pytest.raises(ValueError, match="BS60"):
        resolve(root, "bad")
    assert Path(resolve(root, "good").lora_path, TENSORS).is_file()
    assert resolve(root, "nobody") is None


def test_others_are_left_to_vllm(root):
    (root / "lora").mkdir()
    config = f'{{"peft_type": "LORA", "base_model_name_or_path": "{root / "base"}"}}'
    (root / "lora" / CONFIG).write_text(config)
    assert resolve(root, "lora").lora_path == str(root / "lora")


def test_a_folder_below_home_is_checked(root, monkeypatch):
    """vLLM expands `~` in a path, so that a path with it is a folder, not a name on the Hub."""
    monkeypatch.setenv("HOME", str(root))
    base = str(root / "base")
    assert Path(check_folder("a", "~/good", base)).is_relative_to(root / "cache")
    (root / "good" / TENSORS).write_bytes(b"")
    for folder in ("~/good", root / "good"):
        with pytest.raises(ValueError, match=r"'a' cannot be served: .*BS60"):
            check_folder("a", folder, base)
    assert _place("~/good") == str(root / "good")
    assert _place("~/good#a") == f"{root / 'good'}#a"


def test_another_version_of_vllm_serves_adapters_by_name(root, monkeypatch):
    """By vLLM's public resolver alone: an equal plain LoRA in the cache, which is written once."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from bishare_dsl import load_adapter

    monkeypatch.setattr("vllm.__version__", "0.99.1")
    monkeypatch.setattr(LoRAResolverRegistry, "resolvers", {})
    monkeypatch.setattr("bishare_dsl.serve.vllm.check._servers", {})
    register_resolver()
    found = resolve(root, "good")
    assert Path(found.lora_path).is_relative_to(root / "cache")
    before = Path(found.lora_path).stat()
    assert resolve(root, "good").lora_path == found.lora_path
    assert Path(found.lora_path).stat() == before
    base, ids = root / "base", torch.arange(3, 12).view(1, -1)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), found.lora_path)
    ours = load_adapter(root / "good", AutoModelForCausalLM.from_pretrained(base))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=1e-4, atol=1e-5)
    shutil.copytree(root / "good", root / "bad")
    (root / "bad" / TENSORS).write_bytes(b"")
    with pytest.raises(ValueError, match=r"'bad' cannot be served: .*BS60"):
        resolve(root, "bad")
