"""Well-known models by name: enough of each one's ``config.json`` to know, or to build, its shapes.

The Hub ids of the 7B, 13B and 8B Llamas and of Qwen 2.5 are those that the paper used.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def _llama(**fields: Any) -> Mapping[str, Any]:
    return MappingProxyType({"model_type": "llama", "tie_word_embeddings": False, **fields})


_LLAMA_1 = {
    "vocab_size": 32_000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
_LLAMA_3 = {
    "vocab_size": 128_256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "num_key_value_heads": 8,
}
_LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LLAMA_3_1 = {
    **_LLAMA_3,
    "max_position_embeddings": 131_072,
    "rope_scaling": _LLAMA_3_ROPE,
}

# Families whose members differ in their sizes alone. What all have, and for each member its id on the
# Hub and its hidden size, intermediate size, blocks, query heads, and key and value heads.
_Sizes = tuple[str, int, int, int, int, int]


def _family(
    common: Mapping[str, Any], sizes: Mapping[str, _Sizes], tied: tuple[str, ...] = ()
) -> dict[str, Preset]:
    """Give the presets of a family, by name; ``tied`` are those whose head is their embedding."""
    return {
        name: Preset(
            model_id,
            MappingProxyType(
                {
                    **common,
                    "tie_word_embeddings": name in tied,
                    "hidden_size": hidden,
                    "intermediate_size": intermediate,
                    "num_hidden_layers": layers,
                    "num_attention_heads": heads,
                    "num_key_value_heads": key_value_heads,
                }
            ),
        )
        for name, (
            model_id,
            hidden,
            intermediate,
            layers,
            heads,
            key_value_heads,
        ) in sizes.items()
    }


_QWEN_2_5 = {
    "model_type": "qwen2",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
}
_QWEN_3 = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "head_dim": 128,
}
_LLAMA_3_2 = {
    "model_type": "llama",
    **_LLAMA_3_1,
    "rope_scaling": {**_LLAMA_3_ROPE, "factor": 32.0},
}
_SMOLLM_2 = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
}

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "llama-7b": Preset(
            "baffo32/decapoda-research-llama-7B-hf",
            _llama(
                **_LLAMA_1,
                hidden_size=4096,
                intermediate_size=11_008,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=32,
            ),
        ),
        "llama-1-13b": Preset(
            "yahma/llama-13b-hf",
            _llama(
                **_LLAMA_1,
                hidden_size=5120,
                intermediate_size=13_824,
                num_hidden_layers=40,
                num_attention_heads=40,
                num_key_value_heads=40,
            ),
        ),
        "llama-3-8b": Preset(
            "meta-llama/Meta-Llama-3.1-8B",
            _llama(
                **_LLAMA_3_1,
                hidden_size=4096,
                intermediate_size=14_336,
                num_hidden_layers=32,
                num_attention_heads=32,
            ),
        ),
        "llama-3-70b": Preset(
            "meta-llama/Meta-Llama-3-70B",
            _llama(
                **_LLAMA_3,
                hidden_size=8192,
                intermediate_size=28_672,
                num_hidden_layers=80,
                num_attention_heads=64,
            ),
        ),
        "llama-3.1-405b": Preset(
            "meta-llama/Llama-3.1-405B",
            _llama(
                **_LLAMA_3_1,
                hidden_size=16_384,
                intermediate_size=53_248,
                num_hidden_layers=126,
                num_attention_heads=128,
            ),
        ),
        **_family(
            _LLAMA_3_2,
            {
                "llama-3.2-1b": ("meta-llama/Llama-3.2-1B", 2048, 8192, 16, 32, 8),
                "llama-3.2-3b": ("meta-llama/Llama-3.2-3B", 3072, 8192, 28, 24, 8),
            },
            tied=("llama-3.2-1b", "llama-3.2-3b"),
        ),
        **_family(
            {
                "model_type": "mistral",
                "vocab_size": 32_768,
                "max_position_embeddings": 32_768,
                "rms_norm_eps": 1e-5,
                "rope_theta": 1_000_000.0,
                "sliding_window": None,
            },
            {"mistral-7b": ("mistralai/Mistral-7B-v0.3", 4096, 14_336, 32, 32, 8)},
        ),
        **_family(
            {**_QWEN_2_5, "vocab_size": 151_936},
            {
                "qwen2.5-0.5b": ("Qwen/Qwen2.5-0.5B-Instruct", 896, 4864, 24, 14, 2),
                "qwen2.5-1.5b": ("Qwen/Qwen2.5-1.5B-Instruct", 1536, 8960, 28, 12, 2),
                "qwen2.5-3b": ("Qwen/Qwen2.5-3B-Instruct", 2048, 11_008, 36, 16, 2),
            },
            tied=("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b"),
        ),
        **_family(
            {**_QWEN_2_5, "vocab_size": 152_064},
            {
                "qwen2.5-7b": ("Qwen/Qwen2.5-7B-Instruct", 3584, 18_944, 28, 28, 4),
                "qwen2.5-14b": ("Qwen/Qwen2.5-14B-Instruct", 5120, 13_824, 48, 40, 8),
                "qwen2.5-32b": ("Qwen/Qwen2.5-32B-Instruct", 5120, 27_648, 64, 40, 8),
                "qwen2.5-72b": ("Qwen/Qwen2.5-72B-Instruct", 8192, 29_568, 80, 64, 8),
            },
        ),
        **_family(
            _QWEN_3,
            {
                "qwen3-0.6b": ("Qwen/Qwen3-0.6B", 1024, 3072, 28, 16, 8),
                "qwen3-1.7b": ("Qwen/Qwen3-1.7B", 2048, 6144, 28, 16, 8),
                "qwen3-4b": ("Qwen/Qwen3-4B", 2560, 9728, 36, 32, 8),
                "qwen3-8b": ("Qwen/Qwen3-8B", 4096, 12_288, 36, 32, 8),
                "qwen3-14b": ("Qwen/Qwen3-14B", 5120, 17_408, 40, 40, 8),
                "qwen3-32b": ("Qwen/Qwen3-32B", 5120, 25_600, 64, 64, 8),
            },
            tied=("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b"),
        ),
        **_family(
            {
                "model_type": "gemma3_text",
                "vocab_size": 262_144,
                "max_position_embeddings": 32_768,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1_000_000.0,
                "rope_local_base_freq": 10_000.0,
                "sliding_window": 512,
                "head_dim": 256,
            },
            {"gemma-3-1b": ("google/gemma-3-1b-it", 1152, 6912, 26, 4, 1)},
            tied=("gemma-3-1b",),
        ),
        **_family(
            {
                "model_type": "phi3",
                "vocab_size": 100_352,
                "max_position_embeddings": 16_384,
                "rms_norm_eps": 1e-5,
                "rope_theta": 250_000.0,
            },
            {"phi-4": ("microsoft/phi-4", 5120, 17_920, 40, 40, 10)},
        ),
        **_family(
            {**_SMOLLM_2, "rope_theta": 100_000.0},
            {
                "smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", 576, 1536, 30, 9, 3),
                "smollm2-360m": ("HuggingFaceTB/SmolLM2-360M-Instruct", 960, 2560, 32, 15, 5),
            },
            tied=("smollm2-135m", "smollm2-360m"),
        ),
        **_family(
            {**_SMOLLM_2, "rope_theta": 130_000.0},
            {"smollm2-1.7b": ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 2048, 8192, 24, 32, 32)},
            tied=("smollm2-1.7b",),
        ),
        **_family(
            {
                "model_type": "smollm3",
                "vocab_size": 128_256,
                "max_position_embeddings": 65_536,
                "rms_norm_eps": 1e-6,
                "rope_theta": 5_000_000.0,
            },
            {"smollm3-3b": ("HuggingFaceTB/SmolLM3-3B", 2048, 11_008, 36, 16, 4)},
            tied=("smollm3-3b",),
        ),
    }
)

ALIASES: Mapping[str, str] = MappingProxyType(
    {"llama-1-7b": "llama-7b", "llama-13b": "llama-1-13b", "llama-3.1-8b": "llama-3-8b"}
)


def is_preset(name: str) -> bool:
    """Tell whether ``name`` is a preset or the alias of one."""
    return name in PRESETS or name in ALIASES


@cache
def preset(name: str) -> Architecture:
    """Give the architecture of a preset, under its own name where ``name`` is an alias.

    Raises:
        ModelError: no preset has that name (BS501).
    """
    name = ALIASES.get(name, name)
    if name not in PRESETS:
        raise ModelError(UNKNOWN_MODEL(name=name, help=nearest(name, (*PRESETS, *ALIASES))))
    return decoder(name, PRESETS[name].model_id, PRESETS[name].config)


def config_of(name: str) -> dict[str, Any]:
    """Give the configuration fields of a preset, as ``AutoConfig.for_model(**fields)`` takes them.

    Raises:
        KeyError: no preset has that name.
    """
    # rope_scaling is a dict, and transformers edits the one it is given.
    return {
        field: dict(value) if isinstance(value, dict) else value
        for field, value in PRESETS[ALIASES.get(name, name)].config.items()
    }
