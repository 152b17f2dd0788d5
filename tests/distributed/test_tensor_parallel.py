"""A base that transformers splits over two processes (`tp_plan="auto"`) is refused, and stays as it was."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from bishare_dsl import compile_spec, parse_spec
from bishare_dsl.diagnostics import ModelError
from bishare_dsl.peft import BishareConfig
from bishare_dsl.testing.models import tiny_model
from tests.distributed.test_two_processes import IDS, MIXED
from tests.distributed.together import Together

pytestmark = pytest.mark.long

together = Together(lambda folder: tiny_model("llama").save_pretrained(folder / "base"))


@together
def a_base_of_tensor_parallelism(folder):
    expected = tiny_model("llama")(IDS, use_cache=False).logits
    base = AutoModelForCausalLM.from_pretrained(folder / "base", tp_plan="auto")
    torch.testing.assert_close(base(IDS, use_cache=False).logits, expected)
    before = [*base.state_dict()]
    with pytest.raises(ModelError, match=r"BS408.*over 2 processes"):
        compile_spec(parse_spec(MIXED), base)
    with pytest.raises(ModelError, match="BS408"):
        get_peft_model(base, BishareConfig(spec=MIXED))
    assert [*base.state_dict()] == before


@pytest.mark.parametrize("name", together)
def test_two_processes(name, found):
    assert [process[name] for process in found] == ["", ""]
