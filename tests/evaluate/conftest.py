from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def few_task_files(tmp_path_factory) -> Path:
    """Of lm_eval's 14,000 task files a few."""
    from lm_eval.tasks import manager

    root, real = tmp_path_factory.mktemp("index"), Path(manager.__file__).parent
    for folder in ("arc", "piqa"):
        shutil.copytree(real / folder, root / folder)
    return root


@pytest.fixture(autouse=True)
def small_index(monkeypatch, few_task_files):
    """Reading all task files takes long."""
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(few_task_files / "manager.py"))
