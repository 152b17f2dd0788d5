"""Hypothesis strategies for tiny models of every family, of which some have quantised layers."""

import copy
from functools import lru_cache

from hypothesis import strategies as st

from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.models.site import block_of
from bishare_dsl.testing.fitting_specs import llama_sizes
from tests.support.families import TINY_FAMILIES, TINY_MIXTURES, TINY_TOWERS, tiny_model
from tests.support.quantised import quantise


@lru_cache(maxsize=256)
def _cached_model(family, overrides):
    return tiny_model(family, **dict(overrides))


@st.composite
def small_models(draw, families=(*TINY_FAMILIES, *TINY_MIXTURES, *TINY_TOWERS)):
    """Generate tiny models of any family, float32 in eval mode; each is a fresh copy.

    The families are causal language models, mixtures of experts, encoders, encoder-decoders and image
    models. The head may be tied to the embedding, and sometimes linear layers are quantised.

    Layers (1 to 3), heads and widths vary if the family allows it. Attention is grouped-query if the family
    supports it, and widths differ.
    """
    family = draw(st.sampled_from(families))
    sizes = _sizes(draw, family) if family in TINY_FAMILIES else {}
    if family in TINY_MIXTURES:
        sizes["num_hidden_layers"] = draw(st.integers(1, 3))
    sizes["tie_word_embeddings"] = draw(st.booleans())
    model = copy.deepcopy(_cached_model(family, tuple(sorted(sizes.items()))))
    if draw(st.sampled_from([False, False, False, True])):
        kinds = {site.kind for site in inspect_model(model).sites}
        few = draw(st.sets(st.sampled_from(sorted(kinds)), min_size=1))
        quantise(model, lambda path: path.rpartition(".")[2] in few and block_of(path) is not None)
    return model


def _sizes(draw, family):
    sizes = draw(llama_sizes())
    layers, heads = sizes["num_hidden_layers"], sizes["num_attention_heads"]
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    if family == "gpt2":
        return {"n_layer": layers, "n_head": heads, "n_embd": hidden, "n_inner": inner}
    few = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": hidden}
    if family == "opt":
        return {**few, "word_embed_proj_dim": hidden, "ffn_dim": inner}
    if family == "falcon":
        return {**few, "ffn_hidden_size": inner}
    if family == "gemma2":
        return {**sizes, "query_pre_attn_scalar": sizes["head_dim"]}
    return sizes
