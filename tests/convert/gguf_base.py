"""Bases in GGUF, in float32, as llama.cpp's `convert_hf_to_gguf.py` writes their families; without tokenizer."""

import gguf
import torch

ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "gemma3_text": "gemma3",
    "qwen3_moe": "qwen3moe",
    "qwen2_moe": "qwen2moe",
}


def write_base(path, model):
    """Write a model's weights, for contexts of up to 64 tokens."""
    config = model.config
    family = config.model_type
    architecture = ARCHITECTURES.get(family, family)
    writer = gguf.GGUFWriter(path, architecture)
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", heads)
    width = config.hidden_size
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    writer.add_feed_forward_length(inner or config.ffn_hidden_size)
    writer.add_head_count(heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    if family in ("gpt2", "falcon"):
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        writer.add_head_count_kv(_falcon_groups(config) if family == "falcon" else heads)
    else:
        head = getattr(config, "head_dim", None) or width // heads
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_head_count_kv(groups)
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_rope_dimension_count(head)
        rope = config.rope_parameters
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        writer.add_expert_count(getattr(config, "num_local_experts", None) or config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if width_of_one := getattr(config, "moe_intermediate_size", None):
        writer.add_expert_feed_forward_length(width_of_one)
    if shared := getattr(config, "shared_expert_intermediate_size", None):
        writer.add_expert_shared_feed_forward_length(shared)
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_sliding_window(config.sliding_window)
    if family == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
    if family == "phi3":
        writer.add_rope_scaling_orig_ctx_len(64)
        writer.add_sliding_window(0)
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers
    )
    for path_, value in model.state_dict().items():
        if path_ == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for name, tensor in _laid_out(path_, value, family, config):
            found = names.get_name(name, (".weight", ".bias"))
            assert found, name
            writer.add_tensor(found, tensor.detach().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _laid_out(path, value, family, config):
    if family in ("llama", "mistral", "mixtral", "smollm3"):
        for kind, heads in (
            ("q_proj", config.num_attention_heads),
            ("k_proj", config.num_key_value_heads),
        ):
            if f".{kind}." in path:
                shape = (heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
                value = value.reshape(shape).swapaxes(1, 2).reshape(value.shape)
    if ".experts." in path:
        if path.endswith("gate_up_proj"):
            gate, up = value.chunk(2, dim=1)
            stem = path.removesuffix("gate_up_proj")
            return [(f"{stem}gate_proj.weight", gate), (f"{stem}up_proj.weight", up)]
        return [(f"{path}.weight", value)]
    if family in ("gemma2", "gemma3_text") and path.endswith("norm.weight"):
        value = value + 1
    if family == "gpt2" and path.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        value = value.t()
    if family == "falcon" and "query_key_value" in path:
        heads, groups = config.num_attention_heads, _falcon_groups(config)
        head = config.hidden_size // heads
        parts = value.view(groups, heads // groups + 2, head, *value.shape[1:])
        queries, keys, values = parts[:, :-2], parts[:, -2], parts[:, -1]
        value = torch.cat([queries.flatten(0, 2), keys.flatten(0, 1), values.flatten(0, 1)])
    return [(path, value)]


def _falcon_groups(config):
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)
