"""The unmodified `tinker` SDK trains tenants of a library, by `examples/tinker_server.py`: `make test-examples`."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from bishare_dsl import compile_spec
from bishare_dsl.folder.files import save_library
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer

ROOT = Path(__file__).parents[2]
SPEC = "spec s\ntarget q_proj, v_proj\nshare x A per kind  B per kind  core per adapter, kind  rank 3 via Core\n"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("tinker") is None, reason="`make test-examples` installs it"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, and a library of an adapter of it."""
    path = tmp_path_factory.mktemp("tinker")
    model = tiny_model("llama")
    model.save_pretrained(path / "tiny")
    tiny_tokenizer().save_pretrained(path / "tiny")
    handle = compile_spec(SPEC, model, seed=7).bishare
    tensors = {name: tensor.detach() + 0.1 for name, tensor in handle.tensors().items()}
    save_library(path / "library", handle.plan, {"old": tensors}, handle.spec_text, seed=7)
    return path


@contextmanager
def serving(folder, store):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = f"--model tiny --spec library --store {store} --port {port}".split()
    command = [sys.executable, str(ROOT / "examples/tinker_server.py"), *words]
    settings = os.environ | {"TINKER_SERVER_KEY": "tml-secret", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, cwd=folder, env=settings)
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def client(folder, url, *words):
    command = [sys.executable, ROOT / "tests/examples/tinker_client.py", url, "tiny", "3", *words]
    settings = os.environ | {"TINKER_TELEMETRY": "0", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*map(str, command)], cwd=folder, env=settings, stdout=subprocess.PIPE, text=True
    )


def answer(process):
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return json.loads(out)


def test_two_tenants_of_two_processes_are_each_as_alone_and_outlive_a_restart(folder):
    with serving(folder, "both") as url:
        processes = [client(folder, url, "train", seed) for seed in ("1", "2")]
        both = [answer(process) for process in processes]
    assert both[0]["seen"] != both[1]["seen"]
    assert both[0]["rank"] == 3
    for number, seed in enumerate(("1", "2")):
        with serving(folder, f"alone-{seed}") as url:
            alone = answer(client(folder, url, "train", seed))
        assert alone["seen"] == both[number]["seen"]
        assert alone["greedy"] == both[number]["greedy"]
    with serving(folder, "both") as url:
        for number, seed in enumerate(("1", "2")):
            names = [both[number][name] for name in ("state", "named")]
            resumed = answer(client(folder, url, "train", seed, *names))
            assert resumed["seen"] == both[number]["seen"][-len(resumed["seen"]) :]
            assert resumed["greedy"] == both[number]["greedy"]


def test_what_is_not_done_is_refused_by_the_errors_of_the_sdk(folder):
    with serving(folder, "errors") as url:
        said = answer(client(folder, url, "errors"))
    assert "loss:sum" in said.pop("after")
    wanted = {
        "a loss": "the losses are cross_entropy", "a token": "a token is a whole number from 0 to",
        "an input": "read no 'mask'", "no number": "not finite", "a base": "there is no base 'nope'",
        "a rank": "pass rank=3", "twice": "overwrite=True", "no state": "there is no tinker://a",
        "optimizer": "AdamW", "sampler": "there is no tinker://x", "key": "key is missing or wrong",
    }  # fmt: skip
    assert said.keys() == wanted.keys()
    for name, text in wanted.items():
        assert text in said[name], said[name]
        kind = said[name].partition(":")[0]
        assert kind in ("RequestFailedError", "NotFoundError", "AuthenticationError"), said[name]


def test_a_tenant_adds_its_private_numbers(folder):
    from safetensors.torch import load_file

    plan = compile_spec(SPEC, tiny_model("llama")).bishare.plan
    with serving(folder, "numbers") as url:
        answer(client(folder, url, "train", "1"))
    (saved,) = (folder / "numbers").glob("*after-six/tenant.safetensors")
    state = load_file(saved)
    assert state["own.value"].numel() == plan.private == 18
    assert int(state["own.step"]) == 6
