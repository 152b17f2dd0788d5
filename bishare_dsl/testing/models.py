"""Tiny random causal language models, one per Hugging Face family.

They are small enough to build in a millisecond, and awkward enough to catch mistakes: wherever the
architecture allows it the widths differ from one another (hidden 32, query 40, key and value 20,
intermediate 48), attention is grouped-query, no bias is zero, no norm is one, and the weights are
seeded and large enough for attention to matter.

    >>> model = tiny_model("llama", num_hidden_layers=3)
    >>> model.model.layers[0].self_attn.k_proj.weight.shape
    torch.Size([20, 32])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SPECIAL_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

_COMMON = {
    "initializer_range": 0.2,
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    **_SPECIAL_TOKENS,
}
# `head_dim` is not hidden_size / heads on purpose, so that the query width (40) is not the hidden
# width (32), nor the intermediate width (48), nor the key and value width (20).
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "head_dim": 10}


@dataclass(frozen=True)
class TinyFamily:
    """How to build one family: `model_type` is Hugging Face's name, `config` the tiny sizes."""

    model_type: str
    config: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


TINY_FAMILIES: Mapping[str, TinyFamily] = MappingProxyType(
    {
        "llama": TinyFamily("llama", _GROUPED),
        "mistral": TinyFamily("mistral", {**_GROUPED, "sliding_window": 4}),
        "qwen2": TinyFamily("qwen2", _GROUPED),
        "qwen3": TinyFamily("qwen3", _GROUPED),
        "gemma2": TinyFamily(
            "gemma2", {**_GROUPED, "sliding_window": 4, "query_pre_attn_scalar": 10}
        ),
        "phi3": TinyFamily("phi3", _GROUPED),
        "mixtral": TinyFamily(
            "mixtral", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
        ),
        # These three have no grouped-query attention, and a head is hidden_size / heads wide.
        "gpt2": TinyFamily(
            "gpt2",
            {
                "initializer_range": 0.2,
                "vocab_size": 64,
                "n_embd": 32,
                "n_inner": 48,
                "n_layer": 2,
                "n_head": 4,
                "n_positions": 64,
                **_SPECIAL_TOKENS,
            },
        ),
        "opt": TinyFamily(
            "opt",
            {
                "init_std": 0.2,
                "vocab_size": 64,
                "hidden_size": 32,
                "word_embed_proj_dim": 32,
                "ffn_dim": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 64,
                **_SPECIAL_TOKENS,
            },
        ),
        "falcon": TinyFamily(
            "falcon",
            {
                "initializer_range": 0.2,
                "vocab_size": 64,
                "hidden_size": 32,
                "ffn_hidden_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 64,
                **_SPECIAL_TOKENS,
            },
        ),
    }
)


def tiny_model(family: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Return a tiny float32 causal language model of `family`, on the CPU and in eval mode.

    Args:
        family: a key of `TINY_FAMILIES`.
        seed: of the weights; the same seed gives the same weights, and torch's global generator is
            left as it was.
        **overrides: configuration fields in the family's own words, such as `num_hidden_layers=3`
            (GPT-2 says `n_layer`) or `attn_implementation="eager"`.

    Raises:
        KeyError: the family is not in `TINY_FAMILIES`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny = TINY_FAMILIES[family]
    attention = overrides.pop("attn_implementation", None)
    config = AutoConfig.for_model(tiny.model_type, **{**tiny.config, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=torch.float32
        )
        # Fresh biases are zero and fresh norms one: a mistake with either would go unseen.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    # One end-of-sequence token drawn by chance must not shorten what a test generates.
    model.generation_config.eos_token_id = None
    model.eval()
    return model
