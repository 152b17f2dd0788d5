"""One tensor in two places: whatever an adapter does, its references are one parameter with one gradient."""

import copy

import pytest
import torch

from bishare_dsl import compile_spec, load_adapter, plan_spec
from bishare_dsl.diagnostics import AdapterError, PlanError
from bishare_dsl.fit.fit import fit
from bishare_dsl.language import parse_spec
from bishare_dsl.testing.models import tiny_model
from tests.batched.test_batches import IDS
from tests.models.test_weights import mixture
from tests.support import checks
from tests.support.families import TINY_FAMILIES, TINY_TOWERS
from tests.support.forms import MODULES, spec_of
from tests.support.stored import load_stored


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "qwen3_moe"])
@pytest.mark.parametrize(
    "shares",
    [
        """share up A per layer B per expert, layer rank 2 where up_proj
           share down A per module B is up.A rank 2 where down_proj init A zeros
        """,
        """share up per layer, expert rank 2 where up_proj
           share down A per module B is up.A rank 2 where down_proj init A zeros
        """,
        """share up per layer, expert rank 2 where up_proj
           share seen A per layer B per 0, 1 is up.A rank 2 where o_proj init A zeros
        """,
    ],
)
def test_experts_in_one_parameter(family, shares):
    spec = parse_spec(f"spec s target up_proj, down_proj, o_proj {shares}")
    checks.check_spec(spec, mixture(family))


@pytest.mark.parametrize("family", ["t5", "bart", "gpt2"])
def test_towers_and_other_layers(family):
    model = tiny_model({**TINY_FAMILIES, **TINY_TOWERS}[family])
    text = "spec s target attention_inputs, attention_outputs\n"
    text += "share s per tower, layer, out rank 2 via SS\n"
    text += "share t A per module B is s.B rank 2 via SS init A normal"
    checks.check_spec(parse_spec(text), model)


def test_head_and_embedding():
    """The update of the embedding reads what the update of the head writes."""
    text = "spec s target embed_tokens, lm_head\n"
    text += "share head per kind rank 2 where lm_head\n"
    text += "share embedding A per lm_head is head.B B per module rank 2 where embed_tokens init B normal"
    with pytest.raises(PlanError, match=r"BS324.*has the key `false`"):
        plan_spec(text, tiny_model("llama", tie_word_embeddings=False))
    text = text.replace("share head per kind", "share head per model")
    text = text.replace("A per lm_head is head.B", "A is head.B")
    checks.check_spec(parse_spec(text), tiny_model("llama", tie_word_embeddings=False))


def test_it_is_one_parameter_and_one_row_of_the_file(tmp_path):
    model = compile_spec(spec_of("of the next layer"), tiny_model("llama", num_hidden_layers=3))
    plan, tensors = model.bishare.plan, model.bishare.tensors()
    shared = {pool.tensor for pool in plan.pools if pool.share == "read" and pool.role == "A"}
    used = {term.tensors["B"] for term in plan.terms if term.share == "write"}
    assert used == {"read.layer_1.A", "read.layer_2.A"} < shared
    assert not any(name.startswith("write.") and name.endswith(".B") for name in tensors)
    model.bishare.save_pretrained(tmp_path)
    assert len(load_stored(tmp_path)) == len(plan.tensors) == 6 + 2


LIBRARY = f"""spec s
{MODULES}share read   A per layer    B per adapter, layer  rank 2  where q_proj
share write  A per adapter, module  B is read.A  rank 2  where o_proj  init A zeros
share again  A per adapter, layer is read.B  B per module  rank 2  where o_proj  init B normal
"""


def test_a_library_has_it_once(tmp_path):
    """What `read` has in common is in common as `write.B` too, and what is private there, is private."""
    base = tiny_model("llama")
    plan = plan_spec(LIBRARY, base)
    assert plan.is_library
    assert {name for name in plan.common if not name.startswith("again.")} == {
        "read.layer_0.A",
        "read.layer_1.A",
    }
    model = compile_spec(LIBRARY, copy.deepcopy(base))
    checks.randomize(model)
    model.bishare.save_pretrained(tmp_path)
    loaded = load_adapter(tmp_path, copy.deepcopy(base))
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=0, atol=0)


def test_a_fit_refuses_it():
    plan = plan_spec(spec_of("of the owner's key"), tiny_model("llama"))
    with pytest.raises(AdapterError, match=r"BS854.*up\.A.*two places"):
        fit(plan, None)
