"""Heads and embeddings as sites: named, never meant by chance; tied ones are one."""

import pytest
from torch import nn

from bishare_dsl import plan_spec
from bishare_dsl.diagnostics import BishareError, BishareWarning, PlanError
from bishare_dsl.models import inspect_model

UNTIED, TIED = "llama-7b", "smollm2-135m"


def planned(statements, model=UNTIED):
    return plan_spec(f"spec s\n{statements}", model)


def test_a_head_maps_features_to_the_vocabulary_and_an_embedding_back():
    plan = planned("target lm_head, embed_tokens share x per module rank 4")
    widths = {site.path: (site.layer, site.d_in, site.d_out) for site in plan.sites}
    assert widths == {"model.embed_tokens": (None, 32000, 4096), "lm_head": (None, 4096, 32000)}
    assert plan.trainable == 2 * 4 * (4096 + 32000)
    assert {t.name: t.owner for t in plan.tensors}["x.lm_head.A"] == ""


def test_tied_ones_are_one_site():
    plan = planned("target lm_head, embed_tokens share x per module rank 4", TIED)
    (site,) = plan.sites
    assert (site.path, site.tied, site.d_in) == ("lm_head", ("model.embed_tokens",), 576)
    assert plan.trainable == 4 * (576 + 49152)


@pytest.mark.parametrize("named", ["lm_head", "embed_tokens", "heads", 'kind "lm_head"'])
def test_one_of_two_tied_modules_is_refused(named):
    remedy = "`target lm_head, embed_tokens` adapts it for all of them"
    with pytest.raises(BishareError, match=f"(?s)BS315.*{remedy}"):
        planned(f"target {named}, q_proj share x per module rank 4", TIED)


@pytest.mark.parametrize(
    "update", ["via Experts(count = 2)", "via B Mix(count_B = 2) gate softmax"]
)
@pytest.mark.parametrize(
    ("model", "target", "path", "remedy"),
    [
        (UNTIED, "embed_tokens", "model.embed_tokens", "where layer != none"),
        (TIED, "lm_head, embed_tokens", "lm_head", "where layer != none"),
        (
            "mixtral-8x7b",
            "parent experts",
            "model.layers.0.mlp.experts.0.gate_proj",
            "where expert == none",
        ),
    ],
)
def test_only_a_matrix_adapts_an_embedding_or_an_expert(model, target, path, remedy, update):
    text = f"target q_proj, {target}\nshare x {{}} per module rank 2 {update}"
    with pytest.raises(
        PlanError, match=rf"BS327\S*: share `x` adds no matrix to `{path}`"
    ) as error:
        planned(text.format(""), model)
    assert f"`{remedy}`" in str(error.value)
    with pytest.warns(BishareWarning, match="BS308"):
        plan = planned(text.format(remedy), model)
    assert {term.site.rpartition(".")[2] for term in plan.terms} == {"q_proj"}


def test_a_kind_that_blocks_have_means_those_and_a_path_the_other():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.ModuleDict({"dense": nn.Linear(4, 4)})])
    model.pooler = nn.ModuleDict({"dense": nn.Linear(4, 4)})
    architecture = inspect_model(model)
    plan = planned("target dense share x per module rank 1", architecture)
    assert [s.path for s in plan.sites] == ["layers.0.dense"]
    plan = planned('target dense, path "pooler.dense" share x per module rank 1', architecture)
    assert [s.path for s in plan.sites] == ["layers.0.dense", "pooler.dense"]


@pytest.mark.parametrize("where", ['kind "*"', 'path "*"'])
def test_a_glob_is_over_blocks_where_the_head_is_a_target_too(where):
    with pytest.warns(match="BS308.*`lm_head`"):
        plan = planned(f"target q_proj, lm_head share x where {where} per module rank 4")
    assert {term.site.rpartition(".")[2] for term in plan.terms} == {"q_proj"}


def test_a_parent_of_the_name_of_a_head_does_not_name_the_head():
    block = nn.ModuleDict({"head": nn.ModuleDict({"p": nn.Linear(4, 4)}), "q": nn.Linear(4, 4)})
    model = nn.ModuleDict({"layers": nn.ModuleList([block]), "head": nn.Linear(4, 5)})
    architecture = inspect_model(model)
    plan = planned("target parent head share x per module rank 1", architecture)
    assert {site.path for site in plan.sites} == {"layers.0.head.p"}
    plan = planned("target not parent head share x per module rank 1", architecture)
    assert {site.path for site in plan.sites} == {"layers.0.q"}
    named = planned("target head, q share x per module rank 1", architecture)
    assert "head" in {site.path for site in named.sites}


@pytest.mark.parametrize("option", ["max_norm", "sparse"])
def test_an_embedding_that_does_more_than_give_its_rows_is_none(option):
    """With ``max_norm`` it changes its weight as it reads it, so that what is added to a row is not heard alone."""

    def outside(**options):
        model = nn.Module()
        model.layers = nn.ModuleList([nn.ModuleDict({"dense": nn.Linear(4, 4)})])
        model.wte = nn.Embedding(5, 4, **options)
        return [site.path for site in inspect_model(model).outside]

    assert outside() == ["wte"]
    assert outside(**{option: 1}) == []
