"""One call for a rotary position embedding."""

import pytest
from torch import nn
from transformers import Glm4Config, LlamaConfig
from transformers.models.glm4.modeling_glm4 import Glm4Attention
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention

from bishare_dsl.rewrite.capture import capture_region
from bishare_dsl.rewrite.passes import FuseRotary
from bishare_dsl.rewrite.program import RegionProgram

SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 32,
    "pad_token_id": 0,
}


def calls(attention: nn.Module) -> list[tuple[str, str]]:
    """The call of the rotation before the pass and after it: what is called, with which arguments."""
    program = RegionProgram.start(capture_region(attention, ["q_proj"]), 0)

    def call() -> tuple[str, str]:
        (node,) = (n for n in program.forward.nodes if "apply_rotary_pos_emb" in n.args)
        return node.target.__name__, str(node.args)

    before = call()
    FuseRotary().run(program)
    return [before, call()]


@pytest.fixture
def llama():
    return LlamaAttention(LlamaConfig(**SIZES), 0)


def test_a_rotation_of_halves_is_one_call(llama):
    args = (
        "('transformers.models.llama.modeling_llama', 'apply_rotary_pos_emb', "
        "transpose, transpose_1, getitem, getitem_1)"
    )
    assert calls(llama) == [("call_global", args), ("rotary", args)]


def test_another_rotation_stays_as_it_is():
    before, after = calls(Glm4Attention(Glm4Config(**SIZES), 0))
    assert before[0] == "call_global"
    assert after == before


def test_a_patched_function_stays_as_it_is(llama, monkeypatch):
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *_: (q, k))
    before, after = calls(llama)
    assert after == before
