"""A LoRA on a tiny base, faults that an engine may have, and a server over transformers and PEFT."""

import json
import shutil
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bishare_dsl import compile_spec
from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.models.load import architecture_of, meta_model
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.verify.judge import Verdict, judge
from bishare_dsl.verify.reference import read_contents
from bishare_dsl.verify.server import ServerError, ask

LAYERS = 4
KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {"initializer_range": 0.1, "hidden_size": 64, "head_dim": 32, "num_hidden_layers": LAYERS}
SIZES |= {"max_position_embeddings": 1024}
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def save_base(folder, seed=0):
    """A tiny base in a folder, with its tokenizer. (vLLM's attention on the CPU takes heads of 32.)"""
    model = tiny_model("llama", seed=seed, **SIZES)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_lora(folder, base, size=0.1, seed=0, **settings):
    """A LoRA of PEFT of alpha / r = 2, each update about this large of its weight."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": KINDS, "task_type": "CAUSAL_LM"} | settings
    )
    model = get_peft_model(model, config)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "lora_B") and len(getattr(module, "lora_B", ())):
                down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
                up.normal_()
                up.mul_(size * module.base_layer.weight.norm() / (2 * (up @ down).norm()))
    model.save_pretrained(folder)
    return folder


SPEC = f"""spec s
target {", ".join(KINDS)}
share a per layer, kind rank 2 via KE(size = 16)
share b per module rank (2 if q_proj else 1)
"""


def save_compiled(folder, base, seed=0):
    """A folder of bishare's, of two ranks."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    compile_spec(SPEC, model)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=random))
    model.bishare.save_pretrained(folder)
    return folder


def change(folder, tensors=lambda found: found, **config):
    """Write a folder's tensors, or its config, anew."""
    save_file(tensors(load_file(folder / TENSORS)), folder / TENSORS)
    settings = json.loads((folder / CONFIG).read_text()) | config
    (folder / CONFIG).write_text(json.dumps(settings))


def contents_of(folder, base):
    """The files of an adapter, against the shapes of a base."""
    return read_contents(folder, meta_model(str(base)), architecture_of(str(base)))


def judged(asked, name, contents, reference):
    """The verdict, with the expectations of the adapter."""
    expected = None
    if reference is not None and contents.complete:
        expected = reference.expect(contents.pairs, greedy=isinstance(asked.base[0], str))
    return judge(Verdict(name), asked, expected)


def without(*words):
    return lambda found: {n: t for n, t in found.items() if not any(word in n for word in words)}


def ignored(*words):
    """Under names that no module has, which a server takes no notice of."""
    return lambda found: {
        n.replace("model.layers", "model.wrap.layers") if any(word in n for word in words) else n: t
        for n, t in found.items()
    }


FAULTS = {
    "none": {},
    "prefix": {"tensors": ignored("")},
    "k": {"tensors": ignored("k_proj")},
    "half": {"tensors": ignored(*(f".layers.{n}." for n in range(LAYERS // 2, LAYERS)))},
    "alpha": {"lora_alpha": 4},
    "older": {"tensors": lambda found: {n: t.roll(1, 0).contiguous() for n, t in found.items()}},
}


def faulty(place, folder, fault):
    """What a faulty engine would have read of the folder of a LoRA."""
    shutil.copytree(folder, place)
    change(place, **FAULTS[fault])
    return place


def ask_one(server, name="mine"):
    """The answers of the base and of an adapter."""
    (found,) = ask(server, [name], None, lambda items, label: items).values()
    if isinstance(found, ServerError):
        raise found
    return found


class Engine:
    """A base in a type, with adapters by name: what a server answers."""

    def __init__(self, base, dtype=torch.float32):
        self.tokenizer = tiny_tokenizer()
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        self.adapters, self.lock, self.answers = {}, threading.Lock(), 0
        self.merged = {}  # Models that stand for adapters.
        self.of_base = {}
        self.ids, self.most, self.unknown_fields, self.restless = True, 20, True, 0.0
        self.scores = True

    def load(self, name, folder, fault="none"):
        """By hooks, in the engine's type; names that the model does not have are ignored, as in vLLM.

        The fault is that of an engine that reads a folder of bishare's.
        """
        config = json.loads((Path(str(folder).partition("#")[0]) / CONFIG).read_text())
        if config["peft_type"] == "LORA":
            scale, tensors = config["lora_alpha"] / config["r"], load_file(Path(folder) / TENSORS)
        else:
            found, scale = read_contents(folder, self.model, inspect_model(self.model)).pairs, 1.0
            tensors = {
                f"base_model.model.{path}.lora_{factor}.weight": tensor
                for path, pair in found.items()
                for factor, tensor in (("A", pair.down), ("B", pair.up * pair.scale))
            }
            tensors = FAULTS[fault].get("tensors", dict)(tensors)
        pairs = {}
        for key, tensor in tensors.items():
            path, _, factor = key.removeprefix("base_model.model.").rpartition(".lora_")
            pairs.setdefault(path, {})[factor[0]] = tensor.to(self.model.dtype)
        self.adapters[name] = {p: (pair["A"], pair["B"], scale) for p, pair in pairs.items()}

    @contextmanager
    def active(self, name):
        def adds(a, b, scale):
            return lambda module, inputs, output: output + (inputs[0] @ a.t()) @ b.t() * scale

        modules = dict(self.model.named_modules())
        pairs = self.adapters.get(name, {}).items()
        handles = [
            modules[p].register_forward_hook(adds(*pair)) for p, pair in pairs if p in modules
        ]
        yield
        for handle in handles:
            handle.remove()

    @torch.no_grad()
    def choice(self, name, text, top):
        found = self.of_base.get(text) if name not in self.named() else None
        if found is None:
            ids = torch.tensor([self.tokenizer(text)["input_ids"]])
            with self.active(name):
                found = self.merged.get(name, self.model)(ids).logits[0, -1].float()
        if name not in self.named():
            self.of_base[text] = found  # Half of the questions are to the base.
        if self.restless and name not in self.named():  # Answered with somebody's adapter.
            self.answers += 1
            found = found + self.restless * torch.sin(torch.arange(len(found)) * self.answers)
        values, tokens = found.log_softmax(-1).topk(top)
        names = [
            f"token_id:{i}" if self.ids else self.tokenizer.decode([i]) for i in tokens.tolist()
        ]
        return dict(zip(names, values.tolist(), strict=True))

    @torch.no_grad()
    def text(self, name, text, count):
        """A greedy continuation."""
        found = self.tokenizer(text)["input_ids"]
        start = len(found)
        with self.active(name):
            model = self.merged.get(name, self.model)
            while len(found) < start + count and found[-1] != self.tokenizer.eos_token_id:
                found.append(int(model(torch.tensor([found])).logits[0, -1].argmax()))
        return self.tokenizer.decode(found[start:], skip_special_tokens=True)

    def named(self):
        return [*self.adapters, *self.merged]

    def answer(self, path, body):
        """The status, and the JSON."""
        with self.lock:
            if path == "/v1/models":
                listed = [{"id": "base"}, *({"id": n, "parent": "base"} for n in self.named())]
                return 200, {"data": listed}
            if path != "/v1/completions":
                return 404, {"error": f"no {path}"}
            name = body["model"]
            if name not in {"base", *self.named()}:
                return 404, {"error": f"no model {name}"}
            known = {"model", "prompt", "max_tokens", "temperature", "logprobs"}
            if not self.scores:  # As `transformers serve`.
                if not isinstance(body["prompt"], str):
                    return 400, {"error": "prompt must be a string"}
                text = self.text(name, body["prompt"], body["max_tokens"])
                return 200, {"choices": [{"index": 0, "text": text, "logprobs": None}]}
            if body["logprobs"] > self.most or not (self.unknown_fields or known >= body.keys()):
                return 400, {"error": "refused"}
            found = [self.choice(name, text, body["logprobs"]) for text in body["prompt"]]
            logprobs = [{"top_logprobs": [one]} for one in found]
            choices = [{"index": i, "logprobs": one} for i, one in enumerate(logprobs)]
            return 200, {"choices": choices[::-1]}


@contextmanager
def answering(answer):
    """A server that calls `answer` with its handler and the body, and the requests that it got."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.reply(None)

        def do_POST(self):
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body):
            seen.append((self.path, self.headers.get("Authorization")))
            self.close_connection = True
            with suppress(OSError):  # The client may have left.
                answer(self, body)

        def send(self, content, status=200, **headers):
            content = content if isinstance(content, bytes) else content.encode()
            self.send_response(status)
            for name, value in ({"Content-Length": len(content)} | headers).items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def serving(engine):
    """The URL of a server of an engine."""

    def answer(handler, body):
        status, found = engine.answer(handler.path, body)
        handler.send(json.dumps(found), status)

    with answering(answer) as (url, _):
        yield url
