"""Two workers that share each layer (`--tensor-parallel-size 2`) answer as bishare does, each on a core of its own."""

import copy
import os

import pytest

from tests.serve_vllm.conftest import engine
from tests.serve_vllm.served import Served, prompts_of, save_base


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a core for each worker")
@pytest.mark.parametrize("compact", [True, False])
def test_two_workers(compact, tmp_path, monkeypatch):
    first, second, *_ = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{first}|{second}")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    monkeypatch.setenv("VLLM_ENGINE_READY_TIMEOUT_S", "1200")
    model = save_base(tmp_path / "base", "llama", attention_bias=True)
    specs = [("bishare_ke", 1), *([("dora", 11)] if compact else [])]
    each = [Served(tmp_path, copy.deepcopy(model), spec, 2, first) for spec, first in specs]
    extra = {"additional_config": {"bishare_slots_gib": 1}} if compact else {}
    with engine(tmp_path / "base", tensor_parallel_size=2, max_loras=4, **extra) as llm:
        for served in each:
            served.check(llm, prompts_of(6))
