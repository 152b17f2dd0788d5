from peft import PeftModel, get_peft_model

from bishare_dsl.peft import BishareConfig
from bishare_dsl.testing.models import tiny_model

SPEC = """
spec mixed
param r = 2
target q_proj, v_proj
share local per module rank r
"""


def test_values_of_params_stand_in_the_text_that_is_saved(tmp_path):
    config = BishareConfig(spec=SPEC, params={"r": 3}, task_type="CAUSAL_LM")
    get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    assert {term.rank for terms in model.bishare.plan.terms_of.values() for term in terms} == {3}
