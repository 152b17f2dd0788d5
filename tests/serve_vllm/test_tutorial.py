"""The server of docs/tutorial.md, started and asked as the page says."""

import json
import shlex
import sys
from pathlib import Path

from bishare_dsl import compile_spec
from tests.serve_vllm.served import Server, save_base

TEXT = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")


def said(start):
    """The words of the page's command that starts so."""
    [line] = [line for line in TEXT.splitlines() if line.startswith(f"$ {start}")]
    return shlex.split(line)[1:]


class Told(Server):
    """The page's server. What only this machine needs stands behind: no float16, no long wait, a free port."""

    def start(self, root, command, settings):
        port = command[command.index("--port") + 1]
        own = f"--port {port} --dtype float32 --enforce-eager --max-model-len 64"
        super().start(root, [sys.executable, *said("python -m vllm")[1:], *own.split()], {})


def test_the_adapter_answers(tmp_path):
    model = save_base(tmp_path / "smollm2", "llama")
    compile_spec("bishare_ke", model, params={"size": 16}, seed=0)
    model.bishare.save_pretrained(tmp_path / "run")
    url, body = said("curl")[1], said("curl")[-1]
    with Told(tmp_path) as server:
        status, text = server.call(url.removeprefix("localhost:8000"), json.loads(body))
    assert status == 200, text
    answer = json.loads(text)
    assert answer["model"] == "mine"
    assert answer["choices"][0]["text"]
