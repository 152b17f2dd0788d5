import pytest

from bishare_dsl.language import parse_spec
from bishare_dsl.models.decoder import decoder
from bishare_dsl.plan import build_plan


@pytest.fixture
def small():
    """Four layers, and no two widths alike: hidden 12, query 20, key and value 10, intermediate 18."""
    config = {
        "model_type": "llama",
        "hidden_size": 12,
        "intermediate_size": 18,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 5,
        "vocab_size": 7,
        "tie_word_embeddings": False,
    }
    return decoder("small", None, config)


@pytest.fixture
def plan(small):
    """The plan of some statements: by default every kind is a target."""

    def plan(text):
        kinds = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
        target = "" if "target" in text else f"target {kinds}\n"
        lets = "\n".join(line for line in text.splitlines() if line.strip().startswith("let"))
        rest = "\n".join(line for line in text.splitlines() if not line.strip().startswith("let"))
        return build_plan(parse_spec(f"spec test\n{lets}\n{target}{rest}"), small)[0]

    return plan
