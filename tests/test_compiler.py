"""A spec to a plan, a plan into a model: what is found is given back, and nothing is said."""

import warnings

import pytest
import torch

from bishare_dsl import compile_spec, load_adapter, parse_spec
from bishare_dsl.advice import trial
from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import AdapterError, BishareError, BishareWarning, PlanError, SpecError
from bishare_dsl.loading import read_fitting
from bishare_dsl.models import inspect_model, resolve
from bishare_dsl.peft.method import install
from bishare_dsl.plan import build_plan
from tests.support.families import tiny_model

ODD = "spec s\ntarget c_attn, c_fc\nshare x where c_attn per module rank 1\n"


@pytest.fixture(autouse=True)
def _silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error", BishareWarning)
        yield


def test_what_is_found_is_given_back():
    model = tiny_model("gpt2")
    made = make_plan(ODD, model)
    assert [problem.code for problem in made.problems] == ["BS308"]
    assert made.where.source.text == made.text() == ODD
    (note,) = install(model, made, seed=3)
    assert "linear by linear" in note
    with pytest.warns(BishareWarning) as caught:
        other = compile_spec(parse_spec(ODD), tiny_model("gpt2"), seed=3)
    assert len(caught) == 2
    for name, tensor in model.bishare.tensors().items():
        assert torch.equal(other.bishare.tensors()[name], tensor)


def test_a_saved_adapter(tmp_path):
    model = tiny_model("gpt2")
    install(model, make_plan(ODD, model), seed=3)
    model.bishare.save_pretrained(tmp_path)
    stored, problems = read_fitting(tmp_path, tiny_model("gpt2"))
    assert problems == []
    again = tiny_model("gpt2")
    assert len(install(again, stored)) == 1
    assert (again.bishare.seed, again.bishare.spec_text) == (3, ODD)
    with pytest.warns(BishareWarning, match="linear by linear"):
        load_adapter(tmp_path, tiny_model("gpt2"))
    family = inspect_model(tiny_model("gpt2")).model_copy(update={"family": "other"})
    assert [problem.code for problem in read_fitting(tmp_path, family)[1]] == ["BS614"]
    with pytest.raises(AdapterError, match="BS613"):
        read_fitting(tmp_path, tiny_model("llama"))


def test_the_text_of_a_spec():
    text = "spec s\nparam r = 2\ntarget q_proj\nshare x per module rank r\n"
    model = compile_spec(text, tiny_model("llama"), params={"r": 3})
    assert model.bishare.plan.terms[0].rank == 3
    assert "param r = 3" in model.bishare.spec_text
    with pytest.raises(PlanError, match=r"<text>:2:8"):
        make_plan("spec s\ntarget FAKE\nshare x per module rank 1", tiny_model("llama"))
    with pytest.raises(SpecError, match=r"BS207(.|\n)*`r`"):
        make_plan(text, "llama-7b", {"q": 1})
    with pytest.raises(FileNotFoundError):
        make_plan("spec s target q_proj share x per module rank 1", "llama-7b")  # one line: a path


def test_what_names_a_model_is_resolved_once():
    source = resolve("llama-7b")
    assert resolve(source) is source
    assert make_plan("lora", source).plan == make_plan("lora", "llama-7b").plan


def test_at_most_64_texts_are_tried(monkeypatch):
    """Each trial plans the spec again; a problem whose advice was not tried has none."""
    plans = []
    monkeypatch.setattr(trial, "build_plan", lambda *given: plans.append(1) or build_plan(*given))
    lets = "".join(f"let l{i} = q_porj\n" for i in range(90))
    with pytest.raises(BishareError) as caught:
        make_plan(f"spec s\n{lets}target q_proj\nshare a per module rank 2\n", "llama-7b")
    helps = [problem.help for problem in caught.value.problems if problem.code == "BS301"]
    assert len(helps) == 90
    assert len(plans) <= 1 + trial.MOST_TRIALS
    assert 50 < helps.count("did you mean `q_proj`?") <= trial.MOST_TRIALS
