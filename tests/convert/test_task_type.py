"""PEFT loads the export of any model: its task has the right name, and its head is there."""

import json

import peft
import pytest
import torch
import transformers as hf

from bishare_dsl import compile_spec, parse_spec
from bishare_dsl.convert.export import export_adapter
from bishare_dsl.diagnostics import AdapterError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

WIDTHS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
BERT = hf.BertConfig(vocab_size=64, max_position_embeddings=64, num_labels=2, **WIDTHS)
LLAMA = hf.LlamaConfig(vocab_size=64, num_labels=3, pad_token_id=0, **WIDTHS)
T5 = hf.T5Config(
    vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
)
VIT = hf.ViTConfig(image_size=8, patch_size=4, num_labels=3, **WIDTHS)
IDS = {"input_ids": torch.arange(1, 13).view(2, 6)}
BOTH = {**IDS, "decoder_input_ids": torch.arange(8).view(2, 4)}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)}
HEADS = {"classifier", "score", "qa_outputs"}

CASES = [
    (hf.BertModel, BERT, "query, dense", IDS, "FEATURE_EXTRACTION"),
    (hf.BertForMaskedLM, BERT, "query, dense", IDS, None),
    (hf.BertForSequenceClassification, BERT, "query, value", IDS, "SEQ_CLS"),
    (hf.LlamaForSequenceClassification, LLAMA, "q_proj, down_proj", IDS, "SEQ_CLS"),
    (hf.BertForTokenClassification, BERT, "query, value", IDS, "TOKEN_CLS"),
    (hf.BertForQuestionAnswering, BERT, "query, value", IDS, "QUESTION_ANS"),
    (hf.LlamaForCausalLM, LLAMA, "q_proj, down_proj", IDS, "CAUSAL_LM"),
    (hf.LlamaModel, LLAMA, "q_proj, down_proj", IDS, None),
    (hf.T5ForConditionalGeneration, T5, "q, wo", BOTH, "SEQ_2_SEQ_LM"),
    (hf.ViTForImageClassification, VIT, "q_proj, fc1", PIXELS, None),
]


@pytest.mark.parametrize(
    ("cls", "config", "kinds", "inputs", "task"), CASES, ids=[case[0].__name__ for case in CASES]
)
@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
def test_peft_loads_it(cls, config, kinds, inputs, task, tmp_path):
    def base():
        torch.manual_seed(0)
        return cls(config).eval()

    plain = base()(**inputs)[0]
    model = compile_spec(parse_spec(f"spec s target {kinds} share x per module rank 2"), base())
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.add_(torch.randn(tensor.shape, generator=random))
    want = model(**inputs)[0]
    assert (want - plain).abs().max() > 1e-3
    model.bishare.export(tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["task_type"] == task
    other = base()
    # The head comes with the export, as PEFT has it.
    for name in HEADS & dict(other.named_children()).keys() if task else ():
        other.get_submodule(name).reset_parameters()
    loaded = peft.PeftModel.from_pretrained(other, tmp_path / "peft").eval()
    if task is not None:
        assert type(loaded) is peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING[task]
    torch.testing.assert_close(loaded(**inputs)[0], want, rtol=1e-4, atol=1e-4)


def test_a_head_without_values_is_refused(tmp_path):
    with torch.device("meta"):
        shapes = hf.BertForSequenceClassification(BERT)
    spec = parse_spec("spec s target query train none share x per module rank 2")
    handle = compile_spec(spec, hf.BertForSequenceClassification(BERT)).bishare
    with pytest.raises(AdapterError, match=r"BS617.*classifier\.weight.*meta device"):
        export_adapter(tmp_path / "peft", handle.plan, handle.tensors(), shapes)
    assert not list(tmp_path.iterdir())
