"""How far a merge moves a model's outputs, whatever model it is."""

from typing import Any

import pytest
import torch
import transformers as hf

from bishare_dsl import compile_spec, parse_spec
from bishare_dsl.adapter.probe import probe
from bishare_dsl.testing.models import tiny_model
from tests.export.conftest import moved

WIDTHS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
BERT = hf.BertConfig(vocab_size=64, max_position_embeddings=64, **WIDTHS)
VIT = hf.ViTConfig(image_size=8, patch_size=4, num_labels=3, **WIDTHS)
T5 = hf.T5Config(
    vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
)

CASES = [
    (hf.BertModel, BERT, "query", "last_hidden_state"),
    (hf.BertForSequenceClassification, BERT, "query", "logits"),
    (hf.T5ForConditionalGeneration, T5, "q", "logits"),
]


def adapted(cls: Any, config: Any, kind: str) -> Any:
    torch.manual_seed(0)
    spec = parse_spec(f"spec s target {kind} share x per module rank 2 scale 4")
    return moved(compile_spec(spec, cls(config).eval()))


@pytest.mark.parametrize(
    ("cls", "config", "kind", "name"), CASES, ids=[case[0].__name__ for case in CASES]
)
@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
def test_a_merge_is_measured(cls: Any, config: Any, kind: str, name: str) -> None:
    model = adapted(cls, config, kind)
    found = probe(model)
    with model.bishare.disable_adapter():  # The probe hears the adapter.
        assert not torch.equal(probe(model).output, found.output)
    report = model.bishare.merge()
    assert report.measured == found.name == name
    assert 0 <= report.max_difference < 1e-4
    assert f"; {name.replace('_', ' ')} differ" in str(report)


@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
def test_a_model_that_reads_no_text_is_measured_on_what_it_is_given() -> None:
    model = adapted(hf.ViTForImageClassification, VIT, "q_proj")
    report = model.bishare.merge()
    assert model.bishare.merged
    assert (report.max_difference, report.relative_difference, report.measured) == (None, None, "")
    assert "was not measured, for no inputs are known for `pixel_values`: give some" in str(report)
    model.bishare.unmerge()
    report = model.bishare.merge(torch.randn(1, 3, 8, 8))
    assert report.measured == "logits"
    assert report.max_difference < 1e-4


def test_what_a_model_raises_for_given_inputs_is_raised() -> None:
    model = tiny_model("llama")
    compile_spec(parse_spec("spec s target q_proj share x per module rank 2"), model)
    with pytest.raises(IndexError):
        model.bishare.merge(torch.tensor([[1000]]))
    assert not model.bishare.merged


def test_the_probe_is_always_the_same_and_of_the_models_type() -> None:
    model = adapted(hf.BertModel, BERT, "query").to(torch.bfloat16)
    first, second = probe(model), probe(model)
    assert torch.equal(first.output, second.output)
    assert first.output.dtype == torch.float32
    assert (first.inputs["input_ids"] == second.inputs["input_ids"]).all()
