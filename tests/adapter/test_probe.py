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
CLIP = hf.CLIPConfig(
    text_config={**WIDTHS, "vocab_size": 64, "max_position_embeddings": 16, "projection_dim": 16},
    vision_config={**WIDTHS, "image_size": 8, "patch_size": 4, "projection_dim": 16},
    projection_dim=16,
)
WHISPER = hf.WhisperConfig(
    vocab_size=64, num_mel_bins=4, d_model=32, encoder_layers=1, decoder_layers=1,
    encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
    max_source_positions=10, max_target_positions=20, pad_token_id=0, decoder_start_token_id=1,
)  # fmt: skip
WAV2VEC2 = hf.Wav2Vec2Config(
    vocab_size=16, conv_dim=(32,), conv_kernel=(400,), conv_stride=(320,), num_feat_extract_layers=1,
    num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, **WIDTHS
)  # fmt: skip
T5 = hf.T5Config(
    vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
)
AST = hf.ASTConfig(num_mel_bins=16, max_length=32, patch_size=8, **WIDTHS)

CASES = [
    (hf.BertModel, BERT, "query", "last_hidden_state"),
    (hf.BertForSequenceClassification, BERT, "query", "logits"),
    (hf.ViTModel, VIT, "q_proj", "last_hidden_state"),
    (hf.ViTForImageClassification, VIT, "q_proj", "logits"),
    (hf.CLIPModel, CLIP, "q_proj", "logits_per_image"),
    (hf.WhisperForConditionalGeneration, WHISPER, "q_proj", "logits"),
    (hf.Wav2Vec2ForCTC, WAV2VEC2, "q_proj", "logits"),
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
def test_a_model_that_cannot_be_guessed_is_merged_and_not_measured() -> None:
    model = adapted(hf.ASTModel, AST, "q_proj")
    report = model.bishare.merge()
    assert model.bishare.merged
    assert (report.max_difference, report.relative_difference, report.measured) == (None, None, "")
    assert "was not measured, for the model does not run on input_values alone: " in str(report)
    model.bishare.unmerge()
    report = model.bishare.merge({"input_values": torch.randn(1, 32, 16)})
    assert report.max_difference < 1e-4


def test_what_a_model_raises_for_given_inputs_is_raised() -> None:
    model = tiny_model("llama")
    compile_spec(parse_spec("spec s target q_proj share x per module rank 2"), model)
    with pytest.raises(IndexError):
        model.bishare.merge(torch.tensor([[1000]]))
    assert not model.bishare.merged


def test_the_probe_is_always_the_same_and_of_the_models_type() -> None:
    model = adapted(hf.ViTModel, VIT, "q_proj").to(torch.bfloat16)
    first, second = probe(model), probe(model)
    assert torch.equal(first.output, second.output)
    assert first.output.dtype == torch.float32
    assert (first.inputs["pixel_values"] == second.inputs["pixel_values"]).all()
