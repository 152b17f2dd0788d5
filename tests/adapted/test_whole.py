"""Parameters that are trained in full: every invariant, switching, copies, fresh heads, and what PEFT makes of them."""

import copy
import json

import pytest
import torch
import transformers as hf
from torch import Tensor

from bishare_dsl import compile_spec, load_adapter, parse_spec
from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import AdapterError, BishareWarning
from bishare_dsl.peft.method import install
from tests.convert.test_task_type import BERT, LLAMA, WIDTHS
from tests.support.checks import check_spec, randomize
from tests.support.families import tiny_inputs, tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TEXT = "spec s\ntarget q_proj\ntrain norms, lm_head\nshare x per module rank 3 scale 2\n"
IDS = torch.randint(3, 64, (3, 6), generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def trained(seed=0, base=None, text=TEXT):
    model = compile_spec(text, copy.deepcopy(base or tiny_model("llama")))
    randomize(model, seed)
    return model


@pytest.mark.parametrize(
    ("family", "tied", "train"),
    [
        ("llama", False, "norms, lm_head"),
        ("gemma2", True, "norms, heads, embeddings"),
        ("qwen2", False, "biases, norm"),
        ("gpt2", True, "norms and layer != none, biases"),
        ("mixtral", False, "gate, norm"),
        ("gpt_oss", False, "biases"),  # of experts whose products are adapted
    ],
)
def test_every_invariant(family, tied, train):
    text = f"spec s\ntarget mlp_downs\ntrain {train}\nshare x per module rank 3 scale 2"
    check_spec(parse_spec(text), tiny_model(family, tie_word_embeddings=tied))


def test_a_step_changes_it_and_not_the_base():
    model = compile_spec(TEXT, tiny_model("llama"))
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    fresh = {n: t.clone() for n, t in model.bishare.tensors().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(IDS, labels=IDS).loss.backward()
    optimizer.step()
    moved = {n for n, t in model.bishare.tensors().items() if not torch.equal(t, fresh[n])}
    assert {t.tensor for t in model.bishare.plan.trained} <= moved
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    model.bishare.unload()
    assert torch.equal(logits(model.eval()), logits(tiny_model("llama")))
    assert [type(m) for m in model.modules()] == [type(m) for m in tiny_model("llama").modules()]


def test_tables_that_are_trained_in_full_are_tied_again():
    """accelerate ties the weights of a model that it shards, and transformers those of one that it loads."""
    text = "spec s\ntarget q_proj\ntrain heads, embeddings\nshare x per module rank 3 scale 2\n"
    model = trained(0, tiny_model("qwen2", tie_word_embeddings=True), text)
    wanted, whole = logits(model), type(model.lm_head)
    model.tie_weights()
    assert torch.equal(logits(model), wanted)
    assert type(model.lm_head) is whole
    assert model.lm_head._parameters["weight"] is model.model.embed_tokens._parameters["weight"]
    with model.bishare.disable_adapter():
        base = logits(model)
        model.tie_weights()
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), wanted)
    model.bishare.unload().tie_weights()
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("text", [TEXT, "spec s\ntrain norms\n"])
def test_merging_says_how_far_it_rounds_and_gives_all_back(text):
    base = tiny_model("llama").bfloat16()
    model = trained(base=base, text=text)
    report = model.bishare.merge()
    assert report.max_rounding > 0
    assert torch.equal(
        model.model.norm.weight, model.bishare.tensors()["train.model.norm.weight"][0].bfloat16()
    )
    model.bishare.unmerge()
    assert torch.equal(logits(model.bishare.unload()), logits(base))


# Fresh heads --------------------------------------------------------------------------------------

ROBERTA = hf.RobertaConfig(
    vocab_size=64, max_position_embeddings=64, num_labels=2, pad_token_id=1, **WIDTHS
)
SHARE = "spec s\ntarget attention_inputs\nshare x per module rank 2\n"
HEADS = [
    (hf.BertForSequenceClassification, BERT, {"classifier"}, "SEQ_CLS"),
    (hf.RobertaForSequenceClassification, ROBERTA, {"classifier"}, "SEQ_CLS"),
    (hf.LlamaForSequenceClassification, LLAMA, {"score"}, "SEQ_CLS"),
    (hf.BertForTokenClassification, BERT, {"classifier"}, "TOKEN_CLS"),
    (hf.BertForQuestionAnswering, BERT, {"qa_outputs"}, "QUESTION_ANS"),
]


def fresh(cls, config, seed=0):
    torch.manual_seed(seed)
    return cls(copy.deepcopy(config)).eval()


def first(model):
    with torch.no_grad():
        return model(input_ids=IDS)[0]


@pytest.mark.parametrize(
    ("cls", "config", "heads", "task"), HEADS, ids=[h[0].__name__ for h in HEADS]
)
def test_a_fresh_head_is_trained_saved_and_exported(cls, config, heads, task, tmp_path):
    import peft

    base = fresh(cls, config)
    with pytest.warns(BishareWarning, match=r"BS318.*is trained and saved too"):
        model = compile_spec(SHARE, copy.deepcopy(base))
    assert {t.parameter.split(".")[0] for t in model.bishare.plan.trained} == heads
    assert torch.equal(first(model), first(base))
    randomize(model)
    model.bishare.save_pretrained(tmp_path / "ours")
    other = fresh(cls, config)  # The body is the same, and another head is drawn for it.
    for head in heads:
        for parameter in other.get_submodule(head).parameters():
            torch.nn.init.normal_(parameter)
    assert torch.equal(first(load_adapter(tmp_path / "ours", other)), first(model))
    model.bishare.export(tmp_path / "theirs")
    saved = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    assert saved["task_type"] == task
    assert heads <= {*saved["modules_to_save"]}
    exported = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "theirs")
    torch.testing.assert_close(first(exported), first(model), rtol=1e-5, atol=1e-6)


# What PEFT keeps ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "train", "refused"),
    [
        ("bert", "norms", None),  # Their biases, too.
        ("llama", "norms, lm_head", None),
        ("siglip", 'path "*in_proj_weight"', None),  # Beside a linear layer outside of the blocks.
        ("qwen2", "biases", "BS692"),  # Of linear layers, which PEFT does not save whole.
        ("llama", 'path "norm.weight"', "BS692"),  # Of a body, where other paths end in `norm`.
    ],
)
def test_peft_keeps_what_is_trained_in_full(family, train, refused, tmp_path):
    import peft

    text = f"spec s\ntarget attention_inputs\ntrain {train}\nshare x per module rank 2"
    base = tiny_model(family).model if '"norm' in train else tiny_model(family)
    model = trained(base=base, text=text)
    if refused is not None:
        with pytest.raises(AdapterError, match=refused):
            model.bishare.export(tmp_path / "theirs")
        assert not [*tmp_path.iterdir()]
        return
    model.bishare.export(tmp_path / "theirs")
    exported = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "theirs")
    inputs = tiny_inputs(base)
    found, expected = exported(**inputs), model(**inputs)
    for one, other in zip(found.values(), expected.values(), strict=True):
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "other",
    [
        "spec b\ntrain norms\n",
        # Merged, what stands in the weight's place left no room for the term; unmerged, the sum stayed there.
        "spec b\ntarget lm_head\nshare y per module rank 1\n",
    ],
)
def test_what_one_adapter_trains_in_full_no_other_changes_beside_it(other):
    model = trained()
    install(model, make_plan(other, model), name="b")
    before = logits(model)
    with pytest.raises(AdapterError, match="BS665"):
        model.bishare.set_adapter(["default", "b"])
    assert torch.equal(logits(model), before)
