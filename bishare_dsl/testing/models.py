"""Tiny random models for tests.

They build in a millisecond and are irregular, to catch mistakes. The widths of a Llama all differ
(hidden 32, query 40, key and value 20, intermediate 48), and attention is grouped-query. No bias is zero
and no norm is one. The weights are seeded, and large enough for attention to matter.

    >>> model = tiny_model(num_hidden_layers=3)
    >>> model.model.layers[0].self_attn.k_proj.weight.shape
    torch.Size([20, 32])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TinyFamily:
    """A family of models.

    `model_type` is Hugging Face's name, `config` has the tiny sizes, and `task` is the end of the auto
    class's name.
    """

    model_type: str
    config: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    task: str = "ForCausalLM"


LLAMA = TinyFamily(
    "llama",
    {
        "initializer_range": 0.2,
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        # Not hidden_size / heads, so that all widths differ.
        "head_dim": 10,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
)


def tiny_model(
    family: Literal["llama"] | TinyFamily = "llama", *, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """Return a tiny float32 model of `family`, on the CPU and in eval mode.

    Args:
        family: a Llama, or another family.
        seed: for the weights; torch's global generator does not change.
        **overrides: config fields of the family, such as `num_hidden_layers=3` (`n_layer` in GPT-2) or
            `attn_implementation="eager"`.
    """
    import torch
    import transformers

    tiny = LLAMA if isinstance(family, str) else family
    auto = getattr(transformers, f"AutoModel{tiny.task}")
    attention = overrides.pop("attn_implementation", None)
    config = transformers.AutoConfig.for_model(tiny.model_type, **{**tiny.config, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(
            config, attn_implementation=attention, dtype=torch.float32
        )
        # New biases are zero and new norms one, which would hide mistakes.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 or name.endswith("bias"):  # The bias of an expert is a row.
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    # A random end-of-sequence token must not shorten generated texts.
    if model.can_generate():
        model.generation_config.eos_token_id = None
    model.eval()
    return model
