"""A small server of adapters over transformers: OpenAI's completions of one token, to try `bishare verify`.

    python examples/small_server.py ./base out/library#acme my-lora --port 8000
    python examples/small_server.py ./base out/library#acme --without acme

The second command lists `acme`, and answers as the base. `bishare verify` is for this fault: engines
load adapters whose names they do not know, and answer with status 200. Not for production: requests run
one by one, and equal ones once.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from bishare_dsl.loading import read_fitting
from bishare_dsl.models import load_model
from bishare_dsl.peft.method import install


class Engine:
    """A base with adapters by name.

    Args:
        checkpoint: the folder of the base.
        adapters: folders of adapters by name.
    """

    def __init__(self, checkpoint: str, adapters: Mapping[str, str]) -> None:
        self.model, self.tokenizer = load_model(checkpoint, dtype=torch.float32)
        self.names, self.lock = list(adapters), threading.Lock()
        self.known: dict[tuple[str | None, str, int], dict[str, float]] = {}
        for name, folder in adapters.items():
            stored, _ = read_fitting(folder, self.model)
            install(self.model, stored, name=name)
        self.model.eval()

    @torch.no_grad()
    def next_tokens(self, name: str | None, text: str, count: int) -> dict[str, float]:
        """Return the likeliest next tokens with their log-probabilities; None is the base."""
        asked = name, text, count
        if asked not in self.known:
            ids = self.tokenizer(text, return_tensors="pt").input_ids
            with self.model.bishare.rows([name]) if self.names else nullcontext():
                logits = self.model(ids, logits_to_keep=1).logits[0, -1]
            values, tokens = logits.log_softmax(-1).topk(count)
            told = zip(tokens.tolist(), values.tolist(), strict=True)
            self.known[asked] = {f"token_id:{i}": value for i, value in told}
        return self.known[asked]

    def answer(self, path: str, asked: dict[str, Any], without: Collection[str]) -> tuple[int, Any]:
        """Return the status and the JSON for a request. Adapters of ``without`` are listed and ignored."""
        if path == "/v1/models":
            listed = [{"id": "base"}, *({"id": name, "parent": "base"} for name in self.names)]
            return 200, {"data": listed}
        if path != "/v1/completions" or asked.get("max_tokens") != 1:
            return 400, {"error": "POST /v1/completions with max_tokens = 1 is all there is"}
        if asked["model"] not in ["base", *self.names]:
            return 404, {"error": f"no model {asked['model']}"}
        name = asked["model"] if asked["model"] in set(self.names).difference(without) else None
        with self.lock:
            found = [self.next_tokens(name, text, asked["logprobs"]) for text in asked["prompt"]]
        return 200, {
            "choices": [
                {"index": i, "logprobs": {"top_logprobs": [one]}} for i, one in enumerate(found)
            ]
        }


@contextmanager
def serving(engine: Engine, port: int = 0, without: Collection[str] = ()) -> Iterator[str]:
    """Serve on the loopback address, and yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({})

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, asked: dict[str, Any]) -> None:
            status, found = engine.answer(self.path, asked, without)
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", help="folder of the base model")
    parser.add_argument("adapters", nargs="*", help="folders of adapters, or LIBRARY#NAME")
    parser.add_argument("--without", action="append", default=[], help="an adapter to ignore")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    named = {
        folder.rstrip("/").replace("#", "/").split("/")[-1]: folder for folder in given.adapters
    }
    with serving(Engine(given.base, named), given.port, given.without) as url:
        print(f"{url} serves {', '.join(named) or 'the base'}; Ctrl-C ends it", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
