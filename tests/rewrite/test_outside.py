"""Terms at heads and embeddings: every invariant, tied and untied; dropout, scales, padding, mixed batches."""

import copy
import pickle

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F

import bishare_dsl.peft  # noqa: F401 - registers the method
from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.convert.effective import delta
from bishare_dsl.diagnostics import AdapterError, BishareError, ModelError, PlanError
from tests.support.checks import randomize
from tests.support.families import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
EMBEDDINGS = {"gpt2": "wte", "falcon": "word_embeddings"}
SHARES = {
    "own": "share x per module rank 3 scale 2",
    "shared": "share x per model rank 4 via KE(size = 8)\nshare y per kind rank 2 gain rank init 1, out init 1",
}
IDS = torch.randint(3, 64, (3, 6), generator=torch.Generator().manual_seed(0))


def spec(family, shares=SHARES["own"]):
    return f"spec s\ntarget lm_head, {EMBEDDINGS.get(family, 'embed_tokens')}\n{shares}\n"


def trained(base, text, seed=0):
    model = compile_spec(text, copy.deepcopy(base))
    randomize(model, seed)
    return model


def logits(model, ids=IDS, **more):
    with torch.no_grad():
        return model(ids, **more).logits


def test_both_uses_of_a_tied_weight_hear_the_one_update():
    model = trained(tiny_model("llama", tie_word_embeddings=True), spec("llama"))
    (site,) = model.bishare.plan.sites
    update = delta(model.bishare.plan, model.bishare.tensors(), site)  # (vocabulary, hidden)
    head, embedding = model.lm_head, model.model.embed_tokens
    hidden = torch.randn(2, 32)
    torch.testing.assert_close(head(hidden), hidden @ (head.weight + update).T)
    torch.testing.assert_close(embedding(IDS), (embedding.weight + update)[IDS])
    assert len(model.bishare.tensors()) == 2


def test_padding_gets_no_gradient():
    model = trained(tiny_model("llama"), spec("llama"))
    a = model.bishare.tensors()["x.model.embed_tokens.A"]
    model.model.embed_tokens(torch.tensor([0, 5])).sum().backward()
    assert model.model.embed_tokens.padding_idx == 0
    assert not a.grad[:, 0].any()
    assert a.grad[:, 5].any()


@pytest.mark.parametrize("tied", [False, True])
def test_dropout_takes_whole_tokens_from_an_embedding(tied):
    base = tiny_model("llama", tie_word_embeddings=tied)
    plain, model = (trained(base, spec("llama", f"dropout {p}\n{SHARES['own']}")) for p in (0, 0.5))
    ids, embedding = torch.arange(3, 64), model.model.embed_tokens
    term = plain.model.embed_tokens(ids) - base.model.embed_tokens(ids)
    model.train()
    ratios = ((embedding(ids) - base.model.embed_tokens(ids)) / term).mean(1)
    kept = ratios > 1
    torch.testing.assert_close(ratios, 2.0 * kept, rtol=1e-3, atol=1e-3)
    assert 0 < kept.sum() < len(ids)
    torch.testing.assert_close(embedding.eval()(ids), plain.model.embed_tokens(ids))


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_a_mixed_batch(tied, tmp_path):
    base = tiny_model("gemma2", tie_word_embeddings=tied)
    alone = {}
    for seed, name in enumerate("ab"):
        model = trained(base, spec("gemma2"), seed)
        model.bishare.save_pretrained(tmp_path / name)
        alone[name] = logits(model)
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a", adapter_name="a")
    model.load_adapter(tmp_path / "b", "b")
    found = logits(model, adapter_names=["b", None, "a"])
    expected = torch.stack([alone["b"][0], logits(base)[1], alone["a"][2]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    model.set_adapter("b")
    assert torch.equal(logits(model), alone["b"])


def test_copies_pickles_and_compiled_code():
    model = trained(tiny_model("llama", num_hidden_layers=1), spec("llama"))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other), logits(model))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled), logits(model))


def test_an_adapter_of_tied_modules_does_not_fit_where_they_are_not(tmp_path):
    model = trained(tiny_model("llama", tie_word_embeddings=True), spec("llama"))
    model.bishare.save_pretrained(tmp_path / "a")
    with pytest.raises(AdapterError, match=r"BS613.*one weight is that of `lm_head` in it"):
        load_adapter(tmp_path / "a", tiny_model("llama"))
    untied = tiny_model("llama", tie_word_embeddings=True)
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    with pytest.raises(BishareError, match=r"BS613"):
        load_adapter(tmp_path / "a", untied)


def test_what_is_not_linear_runs_at_a_head_and_not_at_an_embedding():
    share = "share x per module rank 2 via Experts(count = 2)"
    model = trained(tiny_model("llama"), f"spec s\ntarget lm_head\n{share}")
    assert not torch.equal(logits(model), logits(tiny_model("llama")))
    with pytest.raises(PlanError, match=r"BS327.*`model.embed_tokens`"):
        compile_spec(f"spec s\ntarget embed_tokens\n{share}", tiny_model("llama"))


class Lookup(nn.Module):
    """An embedding whose name says nothing of it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(4, 4)})])
        self.codes = nn.Embedding(6, 4)

    def forward(self, ids):
        return self.layers[0]["fc"](self.codes(ids))


def test_an_embedding_of_another_name_is_refused_when_it_is_rewritten():
    text = "spec s\ntarget codes\nshare x per module rank 2 via Experts(count = 2)"
    with pytest.raises(ModelError, match=r"BS403.*`codes`.*an embedding must be a matrix"):
        compile_spec(text, Lookup())


class Bypassing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(4, 4)})])
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        return F.linear(self.layers[0]["fc"](x), self.head.weight)


def test_a_head_whose_weight_the_model_reads_is_refused():
    with pytest.raises(ModelError, match=r"BS403.*`head`.*computes with its weight itself"):
        compile_spec("spec s\ntarget head\nshare x per module rank 1", Bypassing())
