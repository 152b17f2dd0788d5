"""A Hypothesis strategy for artificial architectures."""

from hypothesis import strategies as st

from bishare_dsl.models.decoder import decoder
from bishare_dsl.models.site import Architecture, Parameter, Site

_KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_attn")


def architectures():
    """Generate architectures with few and small sites, without building a model.

    Half of them are decoders. The others have arbitrary kinds, layers and widths in one or two towers, with
    or without experts, unlike any real family.
    """
    return _decoders() | _irregular()


@st.composite
def _decoders(draw):
    heads = draw(st.sampled_from([2, 4]))
    return decoder(
        "drawn",
        None,
        {
            "model_type": "llama",
            "hidden_size": draw(st.integers(2, 24)),
            "intermediate_size": draw(st.integers(2, 24)),
            "num_hidden_layers": draw(st.integers(1, 4)),
            "num_attention_heads": heads,
            "num_key_value_heads": draw(st.sampled_from([1, 2])),
            "head_dim": draw(st.integers(2, 6)),
            "vocab_size": 8,
            "tie_word_embeddings": draw(st.booleans()),
        },
    )


@st.composite
def _irregular(draw):
    layers = draw(st.integers(1, 4))
    experts = draw(st.integers(0, 3))
    parents = ["self_attn.", "mlp.", "", *(f"mlp.experts.{expert}." for expert in range(experts))]
    towers = st.sampled_from(["model.layers", *(["vision_tower.blocks"] * draw(st.booleans()))])
    place = st.tuples(
        towers, st.integers(0, layers - 1), st.sampled_from(parents), st.sampled_from(_KINDS)
    )
    width = st.integers(1, 16)
    drawn = draw(st.dictionaries(place, st.tuples(width, width), min_size=1, max_size=10))
    sites = [
        Site.outside(f"{tower}.{layer}.{parent}{kind}", *widths)
        for (tower, layer, parent, kind), widths in sorted(drawn.items())
    ]
    tied = draw(st.booleans())
    outside = [Site.outside("lm_head", 4, 9, ["model.embed_tokens"] * tied)]
    outside += [Site.outside("model.embed_tokens", 9, 4)] * (not tied)
    norms = [f"{site.path.rpartition('.')[0]}.norm.weight" for site in sites]
    shapes = {**dict.fromkeys(norms, (4,)), "model.norm.weight": (4,), "lm_head.bias": (9,)}
    return Architecture(
        name="drawn",
        family="drawn",
        layers=layers,
        parameters=draw(st.integers(1, 10**12)),
        sites=tuple(sites),
        outside=tuple(outside),
        others=tuple(Parameter(path=path, shape=shape) for path, shape in shapes.items()),
    )
