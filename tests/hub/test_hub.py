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


def test_an_adapter_goes_to_the_hub_and_comes_back(hub, bishare, adapter, base):
    (adapter / "secret.txt").write_text("not an adapter's")
    pushed = bishare("push", adapter, "me/shared", "--private", "--licence", "apache-2.0", "--json")
    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(pushed.stdout)["address"] == f"{hub.url}/me/shared"
    files = hub.repositories["me/shared"]
    assert set(files) == {
        "bishare_config.json", "adapter.safetensors", "spec.share", "README.md", "topology.svg"
    }  # fmt: skip
    assert hub.private == {"me/shared": True}
    assert files["adapter.safetensors"] == (adapter / "adapter.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert "license: apache-2.0\n" in card
    assert 'load_adapter("me/shared", model)' in card
    assert "![](topology.svg)" in card
    assert files["topology.svg"].startswith(b"<svg")
    assert (adapter / "README.md").read_text() != card, "the folder is as it was"
    for name in ("me/shared", "me/shared@main"):
        found = bishare("inspect", name, "--json")
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout)["config"]["base_model"] == "llama"
    merged = bishare("merge", "me/shared", "--model", base, "--out", "merged")
    assert merged.returncode == 0, merged.stderr
    offline = bishare("inspect", "me/shared", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, "what was fetched stays in the cache"


def test_a_handle_pushes_and_load_adapter_fetches(hub, bishare, adapter, tmp_path):
    script = """
import sys, torch
from bishare_dsl import load_adapter
from bishare_dsl.testing.models import tiny_model
model = load_adapter(sys.argv[1], tiny_model("llama"))
print(model.bishare.push_to_hub("mine", dtype="bfloat16"))
again = load_adapter("me/mine", tiny_model("llama"))
for (name, one), other in zip(model.bishare.tensors().items(), again.bishare.tensors().values()):
    assert torch.equal(one.to(torch.bfloat16).float(), other), name
"""
    found = bishare(adapter, script=script)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == f"{hub.url}/me/mine"


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


def test_a_library_goes_to_the_hub_and_comes_back(hub, bishare, library):
    assert bishare("push", library, "me/library").returncode == 0
    files = hub.repositories["me/library"]
    members = {f"adapters/{name}.safetensors" for name in ("law", "code")}
    assert set(files) == members | {
        "bishare_config.json", "adapter.safetensors", "spec.share", "README.md", "topology.svg"
    }  # fmt: skip
    assert 'load_adapter("me/library#law", model)' in files["README.md"].decode()
    script = """
import sys, torch
from bishare_dsl import load_adapter, load_adapters
from bishare_dsl.testing.models import tiny_model
one = load_adapter("me/library@main#code", tiny_model("llama")).bishare.tensors()
here = load_adapter(sys.argv[1] + "#code", tiny_model("llama")).bishare.tensors()
assert all(torch.equal(one[name], here[name]) for name in here)
print(len(list(__import__("pathlib").Path("cache").rglob("law.safetensors"))))
print(*load_adapters("me/library", tiny_model("llama")).bishare.adapters)
"""
    found = bishare(library, script=script)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["0", "law", "code"], "of a library no other adapter is fetched"
    for name, code in (("me/library#lwa", "BS678"), ("me/library", "BS676")):
        assert code in bishare("inspect", name).stderr


def test_an_adapter_of_a_library_is_pushed_as_one_that_stands_alone(hub, bishare, library):
    assert bishare("push", f"{library}#code", "me/code").returncode == 0
    assert set(hub.repositories["me/code"]) == {
        "bishare_config.json", "adapter.safetensors", "spec.share", "README.md", "topology.svg"
    }  # fmt: skip
    script = """
import sys, torch
from bishare_dsl import load_adapter
from bishare_dsl.testing.models import tiny_model
one, other = (load_adapter(name, tiny_model("llama")).bishare.tensors() for name in sys.argv[1:])
assert all(torch.equal(one[name], other[name]) for name in one)
"""
    found = bishare(f"{library}#code", "me/code", script=script)
    assert found.returncode == 0, found.stderr


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
        "me/shared": {"bishare_config.json": b""},
    }
    hub.gated.add("me/gated")
    found = bishare("inspect", name)
    assert found.returncode == 2
    assert code in found.stderr
    assert words in found.stderr


def test_what_the_hub_does_not_take(hub, bishare, adapter):
    found = bishare("push", adapter, "others/shared")
    assert found.returncode == 2
    assert "BS517" in found.stderr
    assert "hf auth login" in found.stderr
    broken = adapter / "adapter.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    hub.asked.clear()
    found = bishare("push", adapter, "me/shared")
    assert found.returncode == 1
    assert hub.asked == [], "what is damaged is not sent"


def test_a_damaged_library_is_not_sent(hub, bishare, library):
    broken = library / "adapters" / "code.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    assert bishare("push", library, "me/library").returncode == 1
    assert hub.asked == []


def test_without_the_hub(bishare, adapter):
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        for command in (("inspect", "me/shared"), ("push", adapter, "me/shared")):
            found = bishare(*command, **environment)
            assert found.returncode == 2
            assert "BS504" in found.stderr


def test_a_folder_wins_over_an_id(hub, bishare, adapter, tmp_path):
    (tmp_path / "me").mkdir()
    adapter.rename(tmp_path / "me" / "shared")
    assert bishare("inspect", "me/shared").returncode == 0
    assert bishare("inspect", "me/other").returncode == 2
    assert hub.asked == []


def test_a_run_is_told_on_the_card(hub, bishare, adapter):
    run = {
        "data": {
            "train": {"name": "/home/me/r|ows.jsonl", "kept": 1200},
            "eval": {"name": "owner/set-1.5", "kept": 10},
        },
        "result": {
            "steps": 75,
            "batch": 16,
            "loss_first": 2.5,
            "loss_last": 1.25,
            "eval_loss": None,
        },
    }
    (adapter / "run.json").write_text(json.dumps(run))
    assert bishare("push", adapter, "me/shared").returncode == 0
    card = hub.repositories["me/shared"]["README.md"].decode()
    data = "r\\|ows.jsonl (1,200 rows), owner/set-1.5 (10 rows, held out)"
    assert f"| data | {data} |" in card
    assert "/home/me" not in card  # The folders of a machine are nobody's business.
    assert "| loss | 2.5 to 1.25 |" in card
