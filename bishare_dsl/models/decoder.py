"""Compute the shapes of a Llama-like decoder from its config, without torch and without a download."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bishare_dsl.models.site import Architecture, Parameter, Site
from bishare_dsl.reading import parse_json

_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3"})
_SIZES = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("num_hidden_layers", "vocab_size"),
)
# With one of these fields, a model of these families has other modules.
_OTHERWISE = (
    *("attention_bias", "mlp_bias", "quantization_config", "auto_map", "num_experts"),
    "num_local_experts",
)


def plain_decoder(name: str, config: Path) -> Architecture | None:
    """Return the shapes of a ``config.json``, or None if this module cannot be sure of them."""
    try:
        fields = parse_json(config.read_bytes())
        [task] = fields["architectures"]
        supported = fields["model_type"] in _FAMILIES and task.endswith("ForCausalLM")
        sizes = [fields[size] for size in _SIZES]
        whole = fields.get("head_dim") or not sizes[0] % sizes[2]
        tied = isinstance(fields["tie_word_embeddings"], bool)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        return None  # Reading it with transformers reports the problem.
    counted = all(type(size) is int and size > 0 for size in sizes)
    if supported and whole and tied and counted and not any(map(fields.get, _OTHERWISE)):
        return decoder(name, None, fields)
    return None


class _BlockSizes(NamedTuple):
    """The widths of a block of a decoder, and its number of experts, 0 without any."""

    hidden: int
    intermediate: int
    head: int
    query: int
    key_value: int
    experts: int


def _sizes_of(config: Mapping[str, Any]) -> _BlockSizes:
    """Return the sizes of each block from the fields of a config."""
    hidden = config["hidden_size"]
    intermediate = config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    return _BlockSizes(
        hidden=hidden,
        intermediate=config.get("moe_intermediate_size") or intermediate,
        head=head,
        query=config["num_attention_heads"] * head,
        key_value=config["num_key_value_heads"] * head,
        experts=config.get("num_experts") or config.get("num_local_experts") or 0,
    )


def _linears(family: str, sizes: _BlockSizes) -> dict[str, tuple[int, int]]:
    """Return the widths of the input and the output of each linear layer of a block."""
    hidden = sizes.hidden
    intermediate = sizes.intermediate
    if family == "phi3":  # Phi-3 has one layer for q, k and v, and one for gate and up.
        return {
            "self_attn.o_proj": (sizes.query, hidden),
            "self_attn.qkv_proj": (hidden, sizes.query + 2 * sizes.key_value),
            "mlp.gate_up_proj": (hidden, 2 * intermediate),
            "mlp.down_proj": (intermediate, hidden),
        }
    linears = {
        "self_attn.q_proj": (hidden, sizes.query),
        "self_attn.k_proj": (hidden, sizes.key_value),
        "self_attn.v_proj": (hidden, sizes.key_value),
        "self_attn.o_proj": (sizes.query, hidden),
    }
    mlps = ["mlp"]
    if sizes.experts:
        mlps = [f"mlp.experts.{number}" for number in range(sizes.experts)]
    for mlp in mlps:
        linears[f"{mlp}.gate_proj"] = (hidden, intermediate)
        linears[f"{mlp}.up_proj"] = (hidden, intermediate)
        linears[f"{mlp}.down_proj"] = (intermediate, hidden)
    return linears


def _shapes_beside_linears(family: str, sizes: _BlockSizes) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the other parameters of a block, in its order: attention, MLP, norms."""
    hidden = sizes.hidden
    shapes: dict[str, tuple[int, ...]] = {}
    if family in ("qwen3", "qwen3_moe", "gemma3_text"):  # Queries and keys are normalised per head.
        shapes["self_attn.q_norm.weight"] = (sizes.head,)
        shapes["self_attn.k_norm.weight"] = (sizes.head,)
    if family == "qwen2":
        shapes["self_attn.q_proj.bias"] = (sizes.query,)
        shapes["self_attn.k_proj.bias"] = (sizes.key_value,)
        shapes["self_attn.v_proj.bias"] = (sizes.key_value,)
    if sizes.experts:
        shapes["mlp.gate.weight"] = (sizes.experts, hidden)  # The router is not a site.
    shapes["input_layernorm.weight"] = (hidden,)
    shapes["post_attention_layernorm.weight"] = (hidden,)
    if family == "gemma3_text":
        shapes["pre_feedforward_layernorm.weight"] = (hidden,)
        shapes["post_feedforward_layernorm.weight"] = (hidden,)
    return shapes


def decoder(name: str, model_id: str | None, config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of a decoder: attention and a gated MLP, or experts, in every block.

    Args:
        name: for messages and plans.
        model_id: its id on the Hub.
        config: the fields of its ``config.json``, with the ``model_type`` of a preset's family.
    """
    sizes = _sizes_of(config)
    hidden = sizes.hidden
    layers = config["num_hidden_layers"]
    family = config["model_type"]
    linears = _linears(family, sizes)
    sites = tuple(
        Site.at(f"model.layers.{layer}.{linear}", d_in, d_out)
        for layer in range(layers)
        for linear, (d_in, d_out) in linears.items()
    )
    shapes = _shapes_beside_linears(family, sizes)
    others = [
        Parameter(path=f"model.layers.{layer}.{path}", shape=shape)
        for layer in range(layers)
        for path, shape in shapes.items()
    ]
    vocabulary = config["vocab_size"]
    embedding = "model.embed_tokens"
    head = "lm_head"
    tied = config["tie_word_embeddings"]
    outside = [Site.outside(head, hidden, vocabulary, [embedding] if tied else [])]
    rows = Parameter(
        path=f"{embedding}.weight",
        shape=(vocabulary, hidden),
        tied=(f"{head}.weight",) if tied else (),
    )
    others = [rows, *others, Parameter(path="model.norm.weight", shape=(hidden,))]
    if not tied:
        outside.insert(0, Site.outside(embedding, vocabulary, hidden))
        others.append(Parameter(path=f"{head}.weight", shape=(vocabulary, hidden)))
    return Architecture(
        name=name,
        family=family,
        model_id=model_id,
        layers=layers,
        parameters=layers * sum(d_in * d_out for d_in, d_out in linears.values())
        + sum(other.size for other in others),
        sites=tuple(site for site in sites if site is not None),
        outside=tuple(outside),
        others=tuple(others),
    )
