"""Tiny random models, one per Hugging Face family of causal language models, and what a model reads.

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
    from torch import Tensor
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
    """How to build one family.

    `model_type` is Hugging Face's name, `config` the tiny sizes, `task` the end of the auto class's name.
    """

    model_type: str
    config: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    task: str = "ForCausalLM"


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


def tiny_model(family: str | TinyFamily, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Return a tiny float32 model of `family`, on the CPU and in eval mode.

    Args:
        family: a key of `TINY_FAMILIES`, or how to build another family.
        seed: of the weights; the same seed gives the same weights, and torch's global generator is
            left as it was.
        **overrides: configuration fields in the family's own words, such as `num_hidden_layers=3`
            (GPT-2 says `n_layer`) or `attn_implementation="eager"`.

    Raises:
        KeyError: there is no such key.
    """
    import torch
    import transformers
    from transformers import AutoConfig

    tiny = TINY_FAMILIES[family] if isinstance(family, str) else family
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


def tiny_inputs(model: PreTrainedModel, seed: int = 0) -> dict[str, Tensor]:
    """Return what a tiny model reads, by keyword: two inputs, of which one is padded where they are tokens.

    Args:
        model: of `tiny_model`.
        seed: of the values.

    Returns:
        ``input_ids`` and ``attention_mask`` (2, 5), ``decoder_input_ids`` (2, 4), ``pixel_values``,
        ``input_features`` (2, 8, 12): those that its forward takes.
    """
    import torch

    random, config = torch.Generator().manual_seed(seed), model.config
    vision = getattr(config, "vision_config", config)
    text = config.get_text_config()
    inputs: dict[str, Tensor] = {}
    if model.main_input_name == "input_ids":
        image = getattr(config, "image_token_id", text.vocab_size)
        ids = torch.randint(3, min(text.vocab_size, image), (2, 5), generator=random)
        mask = torch.ones_like(ids)
        mask[1, -2:] = (
            0  # On the right: on the left, some families give NaN at what nothing attends to.
        )
        inputs = {"input_ids": ids, "attention_mask": mask}
        if image < text.vocab_size:  # Four tokens stand for an image.
            images = torch.full((2, 4), image)
            inputs["input_ids"] = torch.cat([images, ids], 1)
            inputs["attention_mask"] = torch.cat([torch.ones_like(images), mask], 1)
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, text.vocab_size, (2, 4), generator=random)
    if model.main_input_name == "input_features":
        frames = 2 * config.max_source_positions
        inputs["input_features"] = torch.randn(2, config.num_mel_bins, frames, generator=random)
    elif hasattr(vision, "image_size"):
        side = vision.image_size
        inputs["pixel_values"] = torch.randn(2, 3, side, side, generator=random)
    elif hasattr(vision, "spatial_merge_size"):  # Qwen's: patches of images of any size.
        size = 3 * vision.temporal_patch_size * vision.patch_size**2
        inputs["pixel_values"] = torch.randn(2 * 4, size, generator=random)
        inputs["image_grid_thw"] = torch.tensor([[1, 2, 2]] * 2)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == config.image_token_id).int()
    return inputs
