"""Adapters to and from the Hub, against a stand-in for its HTTP API, in a process that knows no other Hub."""

import json
import os
import subprocess
import sys

import pytest
import torch

from bishare_dsl import compile_spec
from bishare_dsl.cli.main import main
from bishare_dsl.testing.models import tiny_model
from tests.hub.stand_in import stand_in

ONE = "from bishare_dsl.cli.main import main; import sys; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def hub():
    with stand_in() as running:
        yield running


@pytest.fixture
def bishare(hub, tmp_path):
    """Runs a command, or a script, with the stand-in as its Hub and a cache of its own."""

    def run(*arguments, script=ONE, **environment):
        settings = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_TOKEN": "hf_a_token",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            **environment,
        }
        return subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=settings,
            cwd=tmp_path,
            timeout=120,
        )

    return run


@pytest.fixture
def base(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "tiny-base")
    return tmp_path / "tiny-base"


@pytest.fixture
def adapter(tmp_path):
    model = compile_spec("shared_input", tiny_model("llama"))
    for parameter in model.bishare.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.bishare.save_pretrained(tmp_path / "made")
    return tmp_path / "made"


def put(hub, name, folder):
    """Put a folder into a repository, as `hf upload` does."""
    files = (path for path in folder.rglob("*") if path.is_file())
    hub.repositories[name] = {str(f.relative_to(folder)): f.read_bytes() for f in files}


OURS = {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def test_an_adapter_comes_from_the_hub(hub, bishare, adapter, base):
    put(hub, "me/shared", adapter)
    hub.repositories["me/shared"]["pickled.bin"] = b"not an adapter's"
    for name in ("me/shared", "me/shared@main"):
        found = bishare("inspect", name, "--json")
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout)["config"]["base_model"] == "llama"
    assert not [line for line in hub.asked if "pickled" in line]
    merged = bishare("merge", "me/shared", "--model", base, "--out", "merged")
    assert merged.returncode == 0, merged.stderr
    offline = bishare("inspect", "me/shared", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, "what was fetched stays in the cache"


def test_peft_pushes_and_both_fetch(hub, bishare, adapter):
    script = """
import sys, torch
from peft import PeftModel
from bishare_dsl import load_adapter
from bishare_dsl.testing.models import tiny_model
import bishare_dsl.peft
model = PeftModel.from_pretrained(tiny_model("llama"), sys.argv[1])
model.push_to_hub("me/mine")
ours = load_adapter("me/mine", tiny_model("llama"))
theirs = PeftModel.from_pretrained(tiny_model("llama"), "me/mine").get_base_model()
for name, tensor in model.get_base_model().bishare.tensors().items():
    assert torch.equal(tensor, ours.bishare.tensors()[name]), name
    assert torch.equal(tensor, theirs.bishare.tensors()[name]), name
"""
    found = bishare(adapter, script=script)
    assert found.returncode == 0, found.stderr
    # README.md is the empty card of transformers, which puts it over ours, as over PEFT's own.
    assert set(hub.repositories["me/mine"]) == OURS


@pytest.fixture
def library(tmp_path, base):
    """Of two adapters, which share their A's."""
    text = "spec s\ntarget q_proj\nshare a  A per layer  B per adapter, module  rank 2\n"
    (tmp_path / "family.share").write_text(text)
    for seed, name in enumerate(("law", "code")):
        model = compile_spec("lora", tiny_model("llama"), seed=seed)
        for parameter in model.bishare.tensors().values():
            torch.nn.init.normal_(parameter, std=0.1)
        model.bishare.save_pretrained(tmp_path / name)
    words = ["fit", tmp_path / "law", tmp_path / "code", "--model", base, "--quiet"]
    words += ["--spec", tmp_path / "family.share", "--out", tmp_path / "library", "--sweeps", "1"]
    assert main([*map(str, words)]) == 0
    return tmp_path / "library"


def test_a_library_comes_from_the_hub(hub, bishare, library):
    put(hub, "me/library", library)
    script = """
import sys, torch
from bishare_dsl import load_adapter
from bishare_dsl.testing.models import tiny_model
one = load_adapter("me/library@main#code", tiny_model("llama")).bishare.tensors()
here = load_adapter(sys.argv[1] + "#code", tiny_model("llama")).bishare.tensors()
assert all(torch.equal(one[name], here[name]) for name in here)
print(len(list(__import__("pathlib").Path("cache").rglob("law.safetensors"))))
"""
    found = bishare(library, script=script)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["0"], "of a library no other adapter is fetched"
    for name, code in (("me/library#lwa", "BS678"), ("me/library", "BS676")):
        assert code in bishare("inspect", name).stderr


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("me/nothing", "BS505", "there is no such repository"),
        ("me/model", "BS505", "not an adapter"),
        ("me/gated", "BS505", "it is gated"),
        ("me/shared@v9", "BS505", "no revision `v9`"),
        ("me/shared--x", "BS505", "Cannot have --"),
        ("me/shared@../../../../stolen", "BS601", "there is no folder"),
        ("me/shared@/etc/stolen", "BS601", "there is no folder"),
    ],
)
def test_what_the_hub_does_not_give_out(hub, bishare, name, code, words):
    hub.repositories |= {
        "me/model": {"config.json": b"{}"},
        "me/shared": {"adapter_config.json": b""},
    }
    hub.gated.add("me/gated")
    found = bishare("inspect", name)
    assert found.returncode == 2
    assert code in found.stderr
    assert words in found.stderr


def test_without_the_hub(bishare):
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        found = bishare("inspect", "me/shared", **environment)
        assert found.returncode == 2
        assert "BS504" in found.stderr


def test_a_folder_wins_over_an_id(hub, bishare, adapter, tmp_path):
    (tmp_path / "me").mkdir()
    adapter.rename(tmp_path / "me" / "shared")
    assert bishare("inspect", "me/shared").returncode == 0
    assert bishare("inspect", "me/other").returncode == 2
    assert hub.asked == []
