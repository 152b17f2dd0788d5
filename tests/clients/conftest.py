"""Tests in training frameworks, each in an environment of its own: `make test-clients`. Elsewhere none is collected."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bishare_dsl import load_adapter
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer

collect_ignore_glob = [
    f"test_{name}.py" for name in ("axolotl", "swift") if find_spec(name) is None
]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

SPEC = """
spec mixed
param r = 2
target q_proj, v_proj, up_proj
share local per module rank r
share inter per model rank 4 via SS
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The current folder, with a tiny checkpoint, rows of chat and a spec."""
    tiny_model("llama", max_position_embeddings=512).save_pretrained(tmp_path / "tiny")
    tiny_tokenizer(TEMPLATE).save_pretrained(tmp_path / "tiny")
    turns = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 16)
    (tmp_path / "mixed.share").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command, **environment):
    """Run what is installed beside this Python; return what it said."""
    told = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout[-4000:]
    return told.stdout


def trained(folder):
    """Return the tensors of an adapter, which a folder of PEFT has, and nothing of the base."""
    model = load_adapter(folder, tiny_model("llama"))
    assert model.bishare.plan.tensor["local.layers.0.self_attn.q_proj.A"].shape[0] == 3
    files = {file.name for file in folder.glob("*.safetensors")}
    assert files == {"adapter_model.safetensors"}
    return {name: tensor.detach() for name, tensor in model.bishare.tensors().items()}
