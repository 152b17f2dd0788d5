"""Tiny random models, to test with.

They are small enough to build in a millisecond, and awkward enough to catch mistakes: the widths of a Llama
differ from one another (hidden 32, query 40, key and value 20, intermediate 48), attention is grouped-query,
no bias is zero, no norm is one, and the weights are seeded and large enough for attention to matter.

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
    """How to build one family.

    `model_type` is Hugging Face's name, `config` the tiny sizes, `task` the end of the auto class's name.
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
        # It is not hidden_size / heads on purpose, so that no two widths are the same.
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
        family: a Llama, or how to build another family.
        seed: of the weights; the same seed gives the same weights, and torch's global generator is
            left as it was.
        **overrides: configuration fields in the family's own words, such as `num_hidden_layers=3`
            (GPT-2 says `n_layer`) or `attn_implementation="eager"`.
    """
    import torch
    import transformers
    from transformers import AutoConfig

    tiny = LLAMA if isinstance(family, str) else family
    auto = getattr(transformers, f"AutoModel{tiny.task}")
    attention = overrides.pop("attn_implementation", None)
    config = AutoConfig.for_model(tiny.model_type, **{**tiny.config, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(
            config, attn_implementation=attention, dtype=torch.float32
        )
        # Fresh biases are zero and fresh norms one: a mistake with either would go unseen.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 or name.endswith("bias"):  # An expert's is a row.
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    # One end-of-sequence token drawn by chance must not shorten what a test generates.
    if model.can_generate():
        model.generation_config.eos_token_id = None
    model.eval()
    return model
