"""A tiny checkpoint with a tokenizer, two adapters that do something, and tasks with local data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from bishare_dsl import compile_spec, parse_spec
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from tests.support.tasks import tiny_tasks

SPEC = """
spec mixed
target q_proj, k_proj, v_proj, up_proj, down_proj
share local per module rank 2 scale 2
share inter per model rank 4 via SS
"""


@pytest.fixture(autouse=True)
def no_look_around(monkeypatch):
    """lm_eval lists every installed package into each result, which takes seconds."""
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")


@pytest.fixture(scope="session")
def few_task_files(tmp_path_factory) -> Path:
    """Of lm_eval's 14,000 task files those of the paper's benchmarks."""
    from lm_eval.tasks import manager

    root, real = tmp_path_factory.mktemp("index"), Path(manager.__file__).parent
    folders = ["arc", "gsm8k", "hellaswag", "mmlu/default", "openbookqa", "piqa", "siqa"]
    for folder in [*folders, "super_glue", "winogrande"]:
        shutil.copytree(real / folder, root / folder)
    return root


@pytest.fixture(autouse=True)
def small_index(monkeypatch, few_task_files):
    """Reading all task files takes long."""
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(few_task_files / "manager.py"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_model("llama", max_position_embeddings=128).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(tmp_path_factory) -> tuple[Path, Path]:
    folders = []
    for seed, name in enumerate(("first", "second")):
        model = compile_spec(parse_spec(SPEC), tiny_model("llama"), seed=seed)
        with torch.no_grad():
            random = torch.Generator().manual_seed(seed)
            for tensor in model.bishare.tensors().values():
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=random))
        folders.append(tmp_path_factory.mktemp("adapters") / name)
        model.bishare.save_pretrained(folders[-1])
    return folders[0], folders[1]


@pytest.fixture(scope="session")
def tasks(tmp_path_factory) -> Path:
    return tiny_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def model():
    return tiny_model("llama", max_position_embeddings=128)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()
