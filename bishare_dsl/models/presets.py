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
_LLAMA_3_1 = {
    **_LLAMA_3,
    "max_position_embeddings": 131_072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
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
        "qwen2.5-7b": Preset(
            "Qwen/Qwen2.5-7B-Instruct",
            MappingProxyType(
                {
                    "model_type": "qwen2",
                    "tie_word_embeddings": False,
                    "vocab_size": 152_064,
                    "max_position_embeddings": 32_768,
                    "rms_norm_eps": 1e-6,
                    "rope_theta": 1_000_000.0,
                    "hidden_size": 3584,
                    "intermediate_size": 18_944,
                    "num_hidden_layers": 28,
                    "num_attention_heads": 28,
                    "num_key_value_heads": 4,
                }
            ),
        ),
        "smollm2-135m": Preset(
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            _llama(
                tie_word_embeddings=True,
                vocab_size=49_152,
                max_position_embeddings=8192,
                rms_norm_eps=1e-5,
                rope_theta=100_000.0,
                hidden_size=576,
                intermediate_size=1536,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
            ),
        ),
    }
)

ALIASES: Mapping[str, str] = MappingProxyType(
    {"llama-1-7b": "llama-7b", "llama-13b": "llama-1-13b", "llama-3.1-8b": "llama-3-8b"}
)


def is_preset(name: str) -> bool:
    """Whether ``name`` is a preset or the alias of one."""
    return name in PRESETS or name in ALIASES


@cache
def preset(name: str) -> Architecture:
    """The architecture of a preset, under its own name where ``name`` is an alias.

    Raises:
        ModelError: no preset has that name (BS501).
    """
    name = ALIASES.get(name, name)
    if name not in PRESETS:
        raise ModelError(UNKNOWN_MODEL(name=name, help=nearest(name, (*PRESETS, *ALIASES))))
    return decoder(name, PRESETS[name].model_id, PRESETS[name].config)


def config_of(name: str) -> dict[str, Any]:
    """The configuration fields of a preset, as ``AutoConfig.for_model(**fields)`` takes them.

    Raises:
        KeyError: no preset has that name.
    """
    # rope_scaling is a dict, and transformers edits the one it is given.
    return {
        field: dict(value) if isinstance(value, dict) else value
        for field, value in PRESETS[ALIASES.get(name, name)].config.items()
    }
