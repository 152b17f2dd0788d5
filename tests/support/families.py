"""Tiny models of many families and their inputs: decoders, mixtures of experts, encoders, other towers."""

from types import MappingProxyType

from bishare_dsl.testing import models
from bishare_dsl.testing.models import LLAMA, TinyFamily


def _family(name, *bases, suffix="ForCausalLM", **more):
    """Return a family whose config has what the bases have, and more."""
    return TinyFamily(name, {k: v for base in (*bases, more) for k, v in base.items()}, suffix)


def _without(config, *names):
    return {name: value for name, value in config.items() if name not in names}


_GROUPED = LLAMA.config
_COMMON = _without(_GROUPED, "num_key_value_heads", "head_dim")
_PLAIN = _without(_COMMON, "initializer_range")
_SMALL = _without(_PLAIN, "intermediate_size")
_SPECIAL = {name: value for name, value in _COMMON.items() if name.endswith("_token_id")}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_FEW = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
_EXPERTS = {**_GROUPED, "num_experts_per_tok": 2}
_UNIFORM = {**_COMMON, "num_key_value_heads": 2, "num_experts_per_tok": 2}

TINY_FAMILIES = MappingProxyType(
    {
        "llama": LLAMA,
        "mistral": _family("mistral", _GROUPED, sliding_window=4),
        "qwen2": _family("qwen2", _GROUPED),
        "qwen3": _family("qwen3", _GROUPED),
        "gemma2": _family("gemma2", _GROUPED, sliding_window=4, query_pre_attn_scalar=10),
        "phi3": _family("phi3", _GROUPED),
        "mixtral": _family("mixtral", _EXPERTS, num_local_experts=4),
        # These three lack grouped-query attention, and their head width is hidden_size / heads.
        "gpt2": _family(
            *("gpt2", _SPECIAL, {"initializer_range": 0.2, "vocab_size": 64, "n_positions": 64}),
            {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4},
        ),
        "opt": _family("opt", _SMALL, init_std=0.2, word_embed_proj_dim=32, ffn_dim=48),
        "falcon": _family("falcon", _SMALL, initializer_range=0.2, ffn_hidden_size=48),
    }
)
"""Text decoders."""

_LATENT = {"q_lora_rank": 12, "kv_lora_rank": 20, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4}
_ROUTED = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
TINY_MIXTURES = MappingProxyType(
    {
        "qwen2_moe": _family(
            "qwen2_moe", _GROUPED, _FEW, num_experts=4, shared_expert_intermediate_size=20
        ),
        "qwen3_moe": _family("qwen3_moe", _GROUPED, _FEW, num_experts=5),
        "gpt_oss": _family("gpt_oss", _EXPERTS, num_local_experts=4, rope_parameters=_ROPE),
        "olmoe": _family("olmoe", _UNIFORM, num_experts=4),
        "granitemoe": _family("granitemoe", _UNIFORM, num_local_experts=4),
        # The first block is dense; others combine a shared expert with groups of routed experts.
        "deepseek_v3": _family(
            "deepseek_v3", _COMMON, _FEW, _ROUTED, _LATENT, num_key_value_heads=4, v_head_dim=8
        ),
    }
)
"""Mixtures of experts besides Mixtral: with shared experts, biases, transposed weights, dense blocks."""

_VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
_VISION |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
_ENCODER = {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
_DECODER = {"decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 40}
_SEQUENCES = {**_SPECIAL, **_ENCODER, **_DECODER, "decoder_start_token_id": 2}
_SEQUENCES |= {"vocab_size": 64, "d_model": 32, "init_std": 0.2}
_IMAGE_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_IMAGES = dict(zip(_IMAGE_TOKENS, range(60, 64), strict=True))
_SEEN = {"num_heads": 2, "patch_size": 4, "spatial_merge_size": 1}
_POSITIONS = {"num_position_embeddings": 16, "deepstack_visual_indexes": [1]}
_SILENT = {"suppress_tokens": None, "begin_suppress_tokens": None}


def _text(*mrope):
    return {
        **_PLAIN,
        "num_key_value_heads": 2,
        "rope_parameters": {**_ROPE, "mrope_section": [*mrope]},
    }


def _towers(name, text, vision, *more, **how):
    return _family(
        name, {"text_config": text, "vision_config": vision}, *more, **{"suffix": ""} | how
    )


_OF_IMAGES = "ForImageTextToText"
TINY_TOWERS = MappingProxyType(
    {
        "bert": _family("bert", _COMMON, suffix="ForMaskedLM"),
        "roberta": _family("roberta", _COMMON, suffix="ForMaskedLM"),
        "modernbert": _family(
            "modernbert", _PLAIN, suffix="ForMaskedLM", cls_token_id=1, sep_token_id=2
        ),
        "deberta": _family("deberta-v2", _COMMON, suffix="ForMaskedLM"),
        "t5": _family(
            *("t5", {"vocab_size": 64, "num_layers": 2, "num_heads": 4}),
            {"d_model": 32, "d_kv": 10, "d_ff": 48, "decoder_start_token_id": 0},
            suffix="ForSeq2SeqLM",
        ),
        "bart": _family("bart", _SEQUENCES, suffix="ForSeq2SeqLM", max_position_embeddings=64),
        "whisper": _family(
            *("whisper", _SEQUENCES, _SILENT),
            {"num_mel_bins": 8, "max_source_positions": 6, "max_target_positions": 16},
            suffix="ForSpeechSeq2Seq",
        ),
        "vit": _family("vit", _VISION, suffix="ForImageClassification", num_labels=3),
        "clip": _towers("clip", _PLAIN, _VISION, projection_dim=16),
        "siglip": _towers(
            "siglip", {**_PLAIN, "projection_size": 32}, {**_VISION, "hidden_size": 32}
        ),
        "llava": _towers(
            "llava",
            {**_PLAIN, "num_key_value_heads": 2, "model_type": "llama"},
            {**_VISION, "model_type": "clip_vision_model"},
            {"image_token_index": 60, "vision_feature_layer": -1},
            suffix=_OF_IMAGES,
        ),
        "qwen2_vl": _towers(
            "qwen2_vl",
            _text(1, 1, 2),
            {**_SEEN, "depth": 2, "embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2},
            _IMAGES,
            suffix=_OF_IMAGES,
        ),
        "qwen3_vl": _towers(
            "qwen3_vl",
            {**_text(2, 2, 1), "head_dim": 10},
            {
                **_SEEN,
                **_POSITIONS,
                "depth": 3,
                "hidden_size": 24,
                "out_hidden_size": 32,
                "intermediate_size": 40,
            },
            _IMAGES,
            suffix=_OF_IMAGES,
        ),
    }
)
"""Families that are not only causal language models; `tiny_inputs` returns their inputs."""


def tiny_model(family, **settings):
    """Return a tiny model of any of these families; ``settings`` as for `bishare_dsl.testing`."""
    return models.tiny_model({**TINY_FAMILIES, **TINY_MIXTURES, **TINY_TOWERS}[family], **settings)


def tiny_inputs(model, seed=0):
    """Return the inputs of a tiny model by keyword: two examples, the tokens of one padded.

    ``input_ids`` and ``attention_mask`` (2, 5), ``decoder_input_ids`` (2, 4), ``input_features`` (2, 8, 12).
    """
    import torch

    random, config = torch.Generator().manual_seed(seed), model.config
    vision = getattr(config, "vision_config", config)
    text = config.get_text_config()
    inputs = {}
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
