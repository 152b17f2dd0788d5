"""The server of docs/tutorial.md, started and asked as the page says."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from bishare_dsl import compile_spec
from tests.serve_vllm.served import save_base

TEXT = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")


def said(start):
    """The words of the page's command that starts so."""
    [line] = [line for line in TEXT.splitlines() if line.startswith(f"$ {start}")]
    return shlex.split(line)[1:]


def test_the_adapter_answers(tmp_path):
    model = save_base(tmp_path / "smollm2", "llama")
    compile_spec("bishare_ke_ab", model, params={"size": 16}, seed=0)
    model.bishare.save_pretrained(tmp_path / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What only this machine needs stands behind: no port that is taken, no float16, no long wait.
    own = ["--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "64"]
    command = [sys.executable, *said("python -m vllm")[1:], *own]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT, env={**os.environ}
        )
    try:
        url, body = said("curl")[1], said("curl")[-1]
        request = urllib.request.Request(
            f"http://{url.replace('localhost:8000', f'127.0.0.1:{port}')}"
        )
        request.data = body.encode()
        request.add_header("Content-Type", "application/json")
        answer = None
        deadline = time.monotonic() + 240
        while answer is None:
            assert server.poll() is None, (tmp_path / "log").read_text()[-4000:]
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-4000:]
            try:
                with urllib.request.urlopen(request, timeout=60) as found:
                    answer = json.loads(found.read())
            except urllib.error.URLError:
                time.sleep(0.5)
        assert answer["model"] == "mine"
        assert answer["choices"][0]["text"]
    finally:
        server.terminate()
        server.wait(30)
