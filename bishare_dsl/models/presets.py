"""Well-known models by name: enough of each one's ``config.json`` to know, or to build, its shapes.

The Hub ids of the 7B, 13B and 8B Llamas and of Qwen 2.5 are those that the paper used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from bishare_dsl.diagnostics import ModelError, nearest
from bishare_dsl.diagnostics.codes.models import UNKNOWN_MODEL
from bishare_dsl.models.decoder import decoder
from bishare_dsl.models.site import Architecture


@dataclass(frozen=True, slots=True)
class Preset:
    """A model's id on the Hub, and the fields of its ``config.json`` that shapes and positions need."""

    model_id: str
    config: Mapping[str, Any]


_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

# What the models of a family have in common, and what is its own.
_COMMON = ("model_type", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta")
_FAMILIES: dict[str, tuple[str, int, int, float, float, dict[str, Any]]] = {
    "llama-1": ("llama", 32_000, 2048, 1e-6, 10_000.0, {}),
    "llama-3": ("llama", 128_256, 8192, 1e-5, 500_000.0, {}),
    "llama-3.1": ("llama", 128_256, 131_072, 1e-5, 500_000.0, {"rope_scaling": _ROPE}),
    "llama-3.2": (
        "llama", 128_256, 131_072, 1e-5, 500_000.0, {"rope_scaling": {**_ROPE, "factor": 32.0}}
    ),
    "mistral": ("mistral", 32_768, 32_768, 1e-5, 1_000_000.0, {"sliding_window": None}),
    "mixtral": (
        "mixtral", 32_000, 32_768, 1e-5, 1_000_000.0,
        {"sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen2.5": ("qwen2", 151_936, 32_768, 1e-6, 1_000_000.0, {}),
    "qwen2.5-large": ("qwen2", 152_064, 32_768, 1e-6, 1_000_000.0, {}),
    "qwen3": ("qwen3", 151_936, 40_960, 1e-6, 1_000_000.0, {"head_dim": 128}),
    "qwen3-30b-a3b": (
        "qwen3_moe", 151_936, 40_960, 1e-6, 1_000_000.0,
        {
            "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
            "moe_intermediate_size": 768,
        },
    ),
    "gemma-3": (
        "gemma3_text", 262_144, 32_768, 1e-6, 1_000_000.0,
        {"rope_local_base_freq": 10_000.0, "sliding_window": 512, "head_dim": 256},
    ),
    "phi-4": ("phi3", 100_352, 16_384, 1e-5, 250_000.0, {}),
    "smollm2-small": ("llama", 49_152, 8192, 1e-5, 100_000.0, {}),
    "smollm2": ("llama", 49_152, 8192, 1e-5, 130_000.0, {}),
    "smollm3": ("smollm3", 128_256, 65_536, 1e-6, 5_000_000.0, {}),
}  # fmt: skip

# Of each model its name, family and id on the Hub, and its sizes; last, whether its head is its embedding.
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
)
_MODELS: tuple[tuple[str, str, str, int, int, int, int, int, bool], ...] = (
    ("llama-7b", "llama-1", "baffo32/decapoda-research-llama-7B-hf", 4096, 11_008, 32, 32, 32, False),
    ("llama-1-13b", "llama-1", "yahma/llama-13b-hf", 5120, 13_824, 40, 40, 40, False),
    ("llama-3-8b", "llama-3.1", "meta-llama/Meta-Llama-3.1-8B", 4096, 14_336, 32, 32, 8, False),
    ("llama-3-70b", "llama-3", "meta-llama/Meta-Llama-3-70B", 8192, 28_672, 80, 64, 8, False),
    ("llama-3.1-405b", "llama-3.1", "meta-llama/Llama-3.1-405B", 16_384, 53_248, 126, 128, 8, False),
    ("llama-3.2-1b", "llama-3.2", "meta-llama/Llama-3.2-1B", 2048, 8192, 16, 32, 8, True),
    ("llama-3.2-3b", "llama-3.2", "meta-llama/Llama-3.2-3B", 3072, 8192, 28, 24, 8, True),
    ("mistral-7b", "mistral", "mistralai/Mistral-7B-v0.3", 4096, 14_336, 32, 32, 8, False),
    ("mixtral-8x7b", "mixtral", "mistralai/Mixtral-8x7B-v0.1", 4096, 14_336, 32, 32, 8, False),
    ("qwen2.5-0.5b", "qwen2.5", "Qwen/Qwen2.5-0.5B-Instruct", 896, 4864, 24, 14, 2, True),
    ("qwen2.5-1.5b", "qwen2.5", "Qwen/Qwen2.5-1.5B-Instruct", 1536, 8960, 28, 12, 2, True),
    ("qwen2.5-3b", "qwen2.5", "Qwen/Qwen2.5-3B-Instruct", 2048, 11_008, 36, 16, 2, True),
    ("qwen2.5-7b", "qwen2.5-large", "Qwen/Qwen2.5-7B-Instruct", 3584, 18_944, 28, 28, 4, False),
    ("qwen2.5-14b", "qwen2.5-large", "Qwen/Qwen2.5-14B-Instruct", 5120, 13_824, 48, 40, 8, False),
    ("qwen2.5-32b", "qwen2.5-large", "Qwen/Qwen2.5-32B-Instruct", 5120, 27_648, 64, 40, 8, False),
    ("qwen2.5-72b", "qwen2.5-large", "Qwen/Qwen2.5-72B-Instruct", 8192, 29_568, 80, 64, 8, False),
    ("qwen3-0.6b", "qwen3", "Qwen/Qwen3-0.6B", 1024, 3072, 28, 16, 8, True),
    ("qwen3-1.7b", "qwen3", "Qwen/Qwen3-1.7B", 2048, 6144, 28, 16, 8, True),
    ("qwen3-4b", "qwen3", "Qwen/Qwen3-4B", 2560, 9728, 36, 32, 8, True),
    ("qwen3-8b", "qwen3", "Qwen/Qwen3-8B", 4096, 12_288, 36, 32, 8, False),
    ("qwen3-14b", "qwen3", "Qwen/Qwen3-14B", 5120, 17_408, 40, 40, 8, False),
    ("qwen3-32b", "qwen3", "Qwen/Qwen3-32B", 5120, 25_600, 64, 64, 8, False),
    ("qwen3-30b-a3b", "qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B", 2048, 6144, 48, 32, 4, False),
    ("gemma-3-270m", "gemma-3", "google/gemma-3-270m-it", 640, 2048, 18, 4, 1, True),
    ("gemma-3-1b", "gemma-3", "google/gemma-3-1b-it", 1152, 6912, 26, 4, 1, True),
    ("phi-4", "phi-4", "microsoft/phi-4", 5120, 17_920, 40, 40, 10, False),
    ("smollm2-135m", "smollm2-small", "HuggingFaceTB/SmolLM2-135M-Instruct", 576, 1536, 30, 9, 3, True),
    ("smollm2-360m", "smollm2-small", "HuggingFaceTB/SmolLM2-360M-Instruct", 960, 2560, 32, 15, 5, True),
    ("smollm2-1.7b", "smollm2", "HuggingFaceTB/SmolLM2-1.7B-Instruct", 2048, 8192, 24, 32, 32, True),
    ("smollm3-3b", "smollm3", "HuggingFaceTB/SmolLM3-3B", 2048, 11_008, 36, 16, 4, True),
)  # fmt: skip


def _config(family: str, sizes: Sequence[int]) -> Mapping[str, Any]:
    *common, own = _FAMILIES[family]
    named = zip((*_COMMON, *_SIZES), (*common, *sizes), strict=True)
    return MappingProxyType(dict(named) | own)


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {name: Preset(model_id, _config(family, sizes)) for name, family, model_id, *sizes in _MODELS}
)

ALIASES: Mapping[str, str] = MappingProxyType(
    {"llama-1-7b": "llama-7b", "llama-13b": "llama-1-13b", "llama-3.1-8b": "llama-3-8b"}
)


@cache
def preset(name: str) -> Architecture:
    """Return the architecture of a preset, under its own name where ``name`` is an alias.

    Raises:
        ModelError: no preset has that name (BS501).
    """
    name = ALIASES.get(name, name)
    if name not in PRESETS:
        raise ModelError(UNKNOWN_MODEL(name=name, help=nearest(name, (*PRESETS, *ALIASES))))
    return decoder(name, PRESETS[name].model_id, PRESETS[name].config)


def config_of(name: str) -> dict[str, Any]:
    """Return the configuration fields of a preset, as ``AutoConfig.for_model(**fields)`` takes them.

    Raises:
        KeyError: no preset has that name.
    """
    # Copies: transformers edits the `rope_scaling` that it is given.
    return deepcopy(dict(PRESETS[ALIASES.get(name, name)].config))
