"""Tiny models of many families and their inputs: decoders, mixtures of experts, encoders, other towers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bishare_dsl.testing import models
from bishare_dsl.testing.models import LLAMA, TinyFamily

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_SPECIAL_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GROUPED = LLAMA.config
_COMMON = {n: v for n, v in _GROUPED.items() if n not in ("num_key_value_heads", "head_dim")}
_EXPERTS = {**_GROUPED, "num_experts_per_tok": 2}
_UNIFORM = {**_COMMON, "num_key_value_heads": 2, "num_experts_per_tok": 2}

TINY_FAMILIES: Mapping[str, TinyFamily] = MappingProxyType(
    {
        "llama": LLAMA,
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
        # These three lack grouped-query attention, and their head width is hidden_size / heads.
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
"""Text decoders."""

TINY_MIXTURES: Mapping[str, TinyFamily] = MappingProxyType(
    {
        "qwen2_moe": TinyFamily(
            "qwen2_moe",
            {
                **_EXPERTS,
                "num_experts": 4,
                "moe_intermediate_size": 12,
                "shared_expert_intermediate_size": 20,
            },
        ),
        "qwen3_moe": TinyFamily(
            "qwen3_moe", {**_EXPERTS, "num_experts": 5, "moe_intermediate_size": 12}
        ),
        "gpt_oss": TinyFamily(
            "gpt_oss",
            {
                **_EXPERTS,
                "num_local_experts": 4,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        "olmoe": TinyFamily("olmoe", {**_UNIFORM, "num_experts": 4}),
        "granitemoe": TinyFamily("granitemoe", {**_UNIFORM, "num_local_experts": 4}),
        # The first block is dense; others combine a shared expert with groups of routed experts.
        "deepseek_v3": TinyFamily(
            "deepseek_v3",
            {
                **_COMMON,
                "num_key_value_heads": 4,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "n_group": 2,
                "topk_group": 1,
                "moe_intermediate_size": 12,
                "first_k_dense_replace": 1,
                "q_lora_rank": 12,
                "kv_lora_rank": 20,
                "qk_nope_head_dim": 6,
                "qk_rope_head_dim": 4,
                "v_head_dim": 8,
            },
        ),
    }
)
"""Mixtures of experts besides Mixtral: with shared experts, biases, transposed weights, dense blocks."""

_PLAIN = {k: v for k, v in _COMMON.items() if k != "initializer_range"}
_VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_SEQUENCES = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "decoder_start_token_id": 2,
    "init_std": 0.2,
    **_SPECIAL_TOKENS,
}
_IMAGE_TOKENS = {
    "image_token_id": 60,
    "video_token_id": 61,
    "vision_start_token_id": 62,
    "vision_end_token_id": 63,
}


def _text(*mrope: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(mrope)}
    return {**_PLAIN, "num_key_value_heads": 2, "rope_parameters": rope}


TINY_TOWERS: Mapping[str, TinyFamily] = MappingProxyType(
    {
        "bert": TinyFamily("bert", _COMMON, "ForMaskedLM"),
        "roberta": TinyFamily("roberta", _COMMON, "ForMaskedLM"),
        "modernbert": TinyFamily(
            "modernbert", {**_PLAIN, "cls_token_id": 1, "sep_token_id": 2}, "ForMaskedLM"
        ),
        "deberta": TinyFamily("deberta-v2", _COMMON, "ForMaskedLM"),
        "t5": TinyFamily(
            "t5",
            {
                "vocab_size": 64,
                "d_model": 32,
                "d_kv": 10,
                "d_ff": 48,
                "num_layers": 2,
                "num_heads": 4,
                "decoder_start_token_id": 0,
            },
            "ForSeq2SeqLM",
        ),
        "bart": TinyFamily("bart", {**_SEQUENCES, "max_position_embeddings": 64}, "ForSeq2SeqLM"),
        "whisper": TinyFamily(
            "whisper",
            {
                **_SEQUENCES,
                "num_mel_bins": 8,
                "max_source_positions": 6,
                "max_target_positions": 16,
                "suppress_tokens": None,
                "begin_suppress_tokens": None,
            },
            "ForSpeechSeq2Seq",
        ),
        "vit": TinyFamily("vit", {**_VISION, "num_labels": 3}, "ForImageClassification"),
        "clip": TinyFamily(
            "clip", {"text_config": _PLAIN, "vision_config": _VISION, "projection_dim": 16}, ""
        ),
        "siglip": TinyFamily(
            "siglip",
            {
                "text_config": {**_PLAIN, "projection_size": 32},
                "vision_config": {**_VISION, "hidden_size": 32},
            },
            "",
        ),
        "llava": TinyFamily(
            "llava",
            {
                "text_config": {**_PLAIN, "num_key_value_heads": 2, "model_type": "llama"},
                "vision_config": {**_VISION, "model_type": "clip_vision_model"},
                "image_token_index": 60,
                "vision_feature_layer": -1,
            },
            "ForImageTextToText",
        ),
        "qwen2_vl": TinyFamily(
            "qwen2_vl",
            {
                "text_config": _text(1, 1, 2),
                "vision_config": {
                    "depth": 2,
                    "embed_dim": 24,
                    "hidden_size": 32,
                    "num_heads": 2,
                    "mlp_ratio": 2,
                    "patch_size": 4,
                    "spatial_merge_size": 1,
                },
                **_IMAGE_TOKENS,
            },
            "ForImageTextToText",
        ),
        "qwen3_vl": TinyFamily(
            "qwen3_vl",
            {
                "text_config": {**_text(2, 2, 1), "head_dim": 10},
                "vision_config": {
                    "depth": 3,
                    "hidden_size": 24,
                    "out_hidden_size": 32,
                    "intermediate_size": 40,
                    "num_heads": 2,
                    "patch_size": 4,
                    "spatial_merge_size": 1,
                    "num_position_embeddings": 16,
                    "deepstack_visual_indexes": [1],
                },
                **_IMAGE_TOKENS,
            },
            "ForImageTextToText",
        ),
    }
)
"""Families that are not only causal language models; `tiny_inputs` returns their inputs."""


def tiny_model(family: str, **settings: Any) -> PreTrainedModel:
    """Return a tiny model of any of these families; ``settings`` as for `bishare_dsl.testing`."""
    return models.tiny_model({**TINY_FAMILIES, **TINY_MIXTURES, **TINY_TOWERS}[family], **settings)


def tiny_inputs(model: PreTrainedModel, seed: int = 0) -> dict[str, Tensor]:
    """Return the inputs of a tiny model by keyword: two examples, the tokens of one padded.

    Args:
        model: from `tiny_model`.
        seed: the seed of the values.

    Returns:
        ``input_ids`` and ``attention_mask`` (2, 5), ``decoder_input_ids`` (2, 4), ``pixel_values``,
            ``input_features`` (2, 8, 12): the arguments of its forward.
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
        mask[1, -2:] = 0  # Padding on the left gives NaN in some families, where nothing attends.
        inputs = {"input_ids": ids, "attention_mask": mask}
        if image < text.vocab_size:  # Four tokens represent an image.
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
    elif hasattr(vision, "spatial_merge_size"):  # Qwen: patches of images of any size.
        size = 3 * vision.temporal_patch_size * vision.patch_size**2
        inputs["pixel_values"] = torch.randn(2 * 4, size, generator=random)
        inputs["image_grid_thw"] = torch.tensor([[1, 2, 2]] * 2)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == config.image_token_id).int()
    return inputs
