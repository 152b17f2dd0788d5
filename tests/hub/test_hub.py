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
from tests.conftest import Run
from tests.hub.stand_in import stand_in

# A process takes seconds to begin, so one answers several commands.
EACH = """
import contextlib, io, json, sys
from bishare_dsl.cli.main import main
answers = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(words)
    answers.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(answers))
"""


@pytest.fixture
def hub():
    with stand_in() as running:
        yield running


@pytest.fixture
def python(hub, tmp_path):
    """Runs a script in a process with the stand-in as its Hub and a cache of its own, and returns what it prints."""

    def run(script, *arguments, **environment):
        settings = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_TOKEN": "hf_a_token",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            **environment,
        }
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=settings,
            cwd=tmp_path,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def bishare(python):
    """Runs commands, one after another in one such process."""

    def run(*commands, **environment):
        words = json.dumps([[*map(str, command)] for command in commands])
        return [Run(*answer) for answer in json.loads(python(EACH, words, **environment))]

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
    words += ["--spec", tmp_path / "family.share", "--out", tmp_path / "library"]
    assert main([*map(str, words)]) == 0
    return tmp_path / "library"


def put(hub, name, folder):
    """Put a folder into a repository, as `hf upload` does."""
    files = (path for path in folder.rglob("*") if path.is_file())
    hub.repositories[name] = {str(f.relative_to(folder)): f.read_bytes() for f in files}


def test_an_adapter_comes_from_the_hub(hub, bishare, adapter):
    put(hub, "me/shared", adapter)
    hub.repositories["me/shared"]["pickled.bin"] = b"not an adapter's"
    names = ("me/shared", "me/shared@main")
    for answer in bishare(*[("inspect", name, "--json") for name in names]):
        assert answer.code == 0, answer.err
        assert json.loads(answer.out)["config"]["base_model"] == "llama"
    assert not [line for line in hub.asked if "pickled" in line]
    offline = bishare(("inspect", "me/shared"), ("inspect", "me/other"), HF_HUB_OFFLINE="1")
    assert offline[0].code == 0, "what was fetched stays in the cache"
    assert offline[1].code == 2
    assert "BS504" in offline[1].err


@pytest.mark.long
def test_peft_pushes_and_both_fetch(hub, python, adapter, base, library, tmp_path):
    put(hub, "me/library", library)
    script = """
import sys, torch
from peft import PeftModel
from bishare_dsl import load_adapter
from bishare_dsl.cli.main import main
from bishare_dsl.testing.models import tiny_model
import bishare_dsl.peft
model = PeftModel.from_pretrained(tiny_model("llama"), sys.argv[1])
model.push_to_hub("me/mine")
ours = load_adapter("me/mine", tiny_model("llama"))
theirs = PeftModel.from_pretrained(tiny_model("llama"), "me/mine").get_base_model()
for name, tensor in model.get_base_model().bishare.tensors().items():
    assert torch.equal(tensor, ours.bishare.tensors()[name]), name
    assert torch.equal(tensor, theirs.bishare.tensors()[name]), name
member = load_adapter("me/library@main#code", tiny_model("llama")).bishare.tensors()
here = load_adapter(sys.argv[2] + "#code", tiny_model("llama")).bishare.tensors()
assert all(torch.equal(member[name], here[name]) for name in here)
assert main(["merge", "me/mine", "--model", sys.argv[3], "--out", "merged"]) == 0
"""
    python(script, adapter, library, base)
    cache = tmp_path / "cache"
    assert list(cache.rglob("code.safetensors"))
    assert not list(cache.rglob("law.safetensors")), "of a library no other adapter is fetched"
    ours = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert hub.repositories["me/mine"].keys() == ours
    card = hub.repositories["me/mine"]["README.md"].decode()
    assert card == (adapter / "README.md").read_text("utf-8"), (
        "transformers has put its own over it"
    )


@pytest.mark.long
def test_training_adds_to_a_library_of_the_hub(hub, python, library, tmp_path):
    put(hub, "me/library", library)
    script = """
import sys
from pathlib import Path
from bishare_dsl.folder.files import add_to_library, names_in, read_adapter
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.train.request import make_request
given = {"model": "base", "data": "rows.jsonl", "output_dir": "run"}
fetched = Path(make_request({**given, "library": "me/library"}, None).library)
assert {*names_in(fetched)} == {"law", "code"}
law = read_adapter(f"{fetched}#law")
add_to_library(fetched, {"late": law.tensors()}, Path("more"))
late = read_adapter("more#late").tensors()
assert all(late[name].equal(tensor) for name, tensor in law.tensors().items())
try:
    make_request({**given, "library": "me/nothing"}, None)
except AdapterError as error:
    print(error)
"""
    assert "BS505" in python(script)


@pytest.mark.long
def test_a_folder_wins_over_an_id_and_the_hub_may_be_down(bishare, adapter, tmp_path):
    (tmp_path / "me").mkdir()
    adapter.rename(tmp_path / "me" / "shared")
    commands = [("inspect", "me/shared"), ("inspect", "you/other")]
    here, elsewhere = bishare(*commands, HF_ENDPOINT="http://127.0.0.1:9")
    assert here.code == 0, here.err  # Nobody was asked: nobody is there.
    assert elsewhere.code == 2
    assert "BS504" in elsewhere.err
