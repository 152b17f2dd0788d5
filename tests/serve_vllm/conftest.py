"""Tests on a real vLLM, in an environment of their own: `make test-vllm`. Elsewhere they are not collected."""

import gc
import os
from contextlib import contextmanager
from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)

# vLLM's attention on the CPU takes heads of 32 features and more.
SIZES = {"initializer_range": 0.1, "hidden_size": 64, "head_dim": 32, "num_hidden_layers": 3}


@contextmanager
def engine(model, **settings):
    """vLLM in this process, in float32, for the folder of a tiny model."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(
        str(model),
        **{
            "dtype": "float32",
            "enforce_eager": True,
            "enable_lora": True,
            "skip_tokenizer_init": True,
            "max_model_len": 64,
            "max_lora_rank": 64,
            # Left out of what is adapted: with it, vLLM 0.32 on the CPU fails on `prompt_logprobs`.
            "lora_target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
            **settings,
        },
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()
