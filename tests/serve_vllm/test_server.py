"""The OpenAI-compatible server as a process: adapters by name over HTTP, many at once, and broken ones among them."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bishare_dsl import compile_spec
from bishare_dsl.folder.files import read_adapter, save_adapter
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from tests.methods.test_every_method import TINY
from tests.serve_vllm.served import Served, Server, save_base

COUNT, CLIENTS, REQUESTS = 12, 16, 500
PROMPT = "what is shared?"
TOKENS = 6


ROUTED = """spec routed
target q_proj
share s  per module  rank 4  via Core(count = 2) gate softmax of A x
"""


class Adapters(Server):
    """A server in compact mode, and what bishare itself writes with each of its adapters."""

    def __init__(self, root):
        model = save_base(root / "base", "llama")
        self.root, self.adapters = root, root / "adapters"
        served = Served(self.adapters, model, "bishare_ke", COUNT)
        self.names = [request.lora_name for request in served.requests[:-1]]
        self.texts = {name: self.written(served, i) for i, name in enumerate(self.names)}
        self.texts["base"] = self.written(served, COUNT)
        # One that takes another's place later.
        shutil.copytree(self.adapters / self.names[1], root / "later")
        self.broken(model.bishare.unload())
        first = str(self.adapters / self.names[0])
        plans = ["--additional-config", json.dumps({"bishare_plans": [first]})]
        words = "--dtype float32 --max-loras 8 --max-cpu-loras 10 --max-num-seqs 16"
        folder = {"VLLM_LORA_RESOLVER_CACHE_DIR": str(self.adapters), "VLLM_LOGGING_LEVEL": "INFO"}
        super().__init__(root, words, *plans, "--lora-modules", f"named={first}", **folder)

    def written(self, served, i):
        """The greedy continuation under adapter i."""
        ids = tiny_tokenizer()(PROMPT)["input_ids"]
        for _ in range(TOKENS):
            ids = [*ids, int(served.logits(i, ids)[-1].argmax())]
        return ids[-TOKENS:]

    def broken(self, model):
        """Folders that cannot be served: damaged, of another plan, of another base, no matrix."""
        damaged = self.adapters / "damaged"
        shutil.copytree(self.adapters / self.names[0], damaged)
        file = damaged / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-8] + bytes(8))
        stored = read_adapter(self.adapters / self.names[0])
        spoilt = {name: torch.full_like(t, torch.nan) for name, t in stored.tensors().items()}
        save_adapter(self.adapters / "nan", stored.plan, spoilt, stored.spec_text, seed=0)
        other = save_base(self.root / "other", "llama", seed=1)
        for name, spec, base in (
            ("other-plan", "lora", model),
            ("other-base", "bishare_ke", tiny_model("llama", num_hidden_layers=3)),
            ("other-weights", "bishare_ke", other),
            ("no-matrix", "hydralora", model),
            ("routed", ROUTED, model),
        ):
            compile_spec(spec, base, params=TINY.get(spec, {}))
            base.bishare.save_pretrained(self.adapters / name)
            base.bishare.unload()

    def complete(self, name):
        body = {"model": name, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True}
        status, text = self.call("/v1/completions", body)
        assert status == 200, text
        return json.loads(text)["choices"][0]["token_ids"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    torch.manual_seed(0)
    with Adapters(tmp_path_factory.mktemp("server")) as found:
        yield found


def test_an_adapter_of_the_command_line_and_the_base(server):
    assert server.complete("named") == server.texts[server.names[0]]
    assert server.complete("base") == server.texts["base"]


BROKEN = {
    "damaged": "BS607",
    "nan": "BS694",
    "other-plan": "BS650",
    "other-base": "BS613",
    "no-matrix": "BS633",
    "routed": "BS633",
}


@pytest.mark.parametrize("name", [*BROKEN, "missing", "../base", ".."])
def test_what_cannot_be_served_is_an_error_of_the_request(server, name):
    """By name, and by the end point that loads; and the server goes on."""
    body = {"model": name, "prompt": PROMPT, "max_tokens": 1}
    status, text = server.call("/v1/completions", body)
    assert status == (400 if name in BROKEN else 404), text
    if name in BROKEN:
        assert BROKEN[name] in text
        body = {"lora_name": f"{name}-2", "lora_path": str(server.adapters / name)}
        status, text = server.call("/v1/load_lora_adapter", body)
        assert status == 400, text
        assert BROKEN[name] in text
        assert "stack trace" not in text
    assert server.complete("base") == server.texts["base"]


def test_an_adapter_of_another_base_of_the_same_shapes_is_in_the_log(server):
    """It is served, as `load_adapter` loads it: with a warning (BS620)."""
    body = {"lora_name": "stranger", "lora_path": str(server.adapters / "other-weights")}
    assert server.call("/v1/load_lora_adapter", body)[0] == 200
    warning = "LoRA adapter 'stranger': warning[BS620]"
    deadline = time.monotonic() + 120
    while warning not in server.lines() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert server.lines().count(warning) == 1
    assert server.lines().count("[BS620]") == 1  # Those of this base are not warned of.


def test_many_requests_of_many_clients_while_an_adapter_is_replaced(server):
    """More adapters than slots and than the host keeps; one of them becomes another in the middle."""
    changing = "changing"
    place = {"lora_name": changing, "lora_path": str(server.adapters / server.names[0])}
    assert server.call("/v1/load_lora_adapter", place)[0] == 200
    names = [*server.names, "base", changing]
    random = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(names), (REQUESTS,), generator=random).tolist()

    def ask(number):
        name = names[chosen[number]]
        if number == REQUESTS // 2:
            later = place | {"lora_path": str(server.root / "later"), "load_inplace": True}
            status, text = server.call("/v1/load_lora_adapter", later)
            assert status == 200, text
        if number % 50 == 0:
            assert server.call("/v1/completions", {"model": "damaged", "prompt": "a"})[0] == 400
        return name, server.complete(name)

    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(ask, range(REQUESTS)))
    for name, found in answers:
        if name == changing:
            # A request that is under way goes on with the new tensors.
            continue
        assert found == server.texts[name]
    assert server.complete(changing) == server.texts[server.names[1]]
    before = [found for name, found in answers[: REQUESTS // 3] if name == changing]
    assert before
    assert all(found == server.texts[server.names[0]] for found in before)
