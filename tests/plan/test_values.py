"""Ranks that a let, a choice or an open range decides, site by site."""

import pytest

from bishare_dsl.language import parse_spec
from bishare_dsl.models import preset
from bishare_dsl.plan import build_plan

HEAD = """spec x
param last = 8
let attention = q_proj, v_proj
let late = layer in -last..-1
target q_proj, v_proj, up_proj
"""


def ranks(rank):
    plan, problems = build_plan(
        parse_spec(f"{HEAD}share s per module rank {rank}"), preset("llama-7b")
    )
    assert [p for p in problems if p.code != "BS213"] == []
    sites = {site.path: site for site in plan.sites}
    return {(sites[t.site].layer, sites[t.site].kind): t.rank for t in plan.terms}


def late(layer, kind):
    return layer >= 24


def attention(layer, kind):
    return kind != "up_proj"


@pytest.mark.parametrize(
    ("rank", "fits"),
    [
        ("2 + 6 * late", late),
        ("8 if late else 2", late),
        ("8 if layer in 24.. else 2", late),
        ("2 if not late else 8", late),
        ("2 if layer in ..23 else last", late),
        ("match layer { 24..: 8; else: 2 }", late),
        ("match late { 1: 8; else: 2 }", late),
        ("match kind { attention: 8; else: 2 }", attention),
        ("8 if kind in {attention} else 2", attention),
        ('2 if path "*.mlp.*" else 8', attention),
        ("2 + 6 * attention * late", lambda *site: attention(*site) and late(*site)),
    ],
)
def test_ranks(rank, fits):
    found = ranks(rank)
    assert found == {site: 8 if fits(*site) else 2 for site in found}
    assert len(found) == 96


@pytest.mark.parametrize(
    ("value", "frozen"), [("A", {"A"}), ("none", set()), ("gain_out", {"gain_out"})]
)
def test_a_param_says_what_is_frozen(value, frozen):
    text = (
        'spec x param kept = "A" target q_proj share s per kind rank 2 freeze kept gain out init 1'
    )
    plan, problems = build_plan(parse_spec(text).with_params({"kept": value}), preset("llama-7b"))
    assert problems == ()
    assert {t.name.rpartition(".")[2] for t in plan.tensors if not t.trainable} == frozen


def test_a_param_behind_freeze_comes_along_with_a_used_file(tmp_path):
    (tmp_path / "base.share").write_text(
        'spec base param kept = "A" target q_proj share s per kind rank 2 freeze kept'
    )
    spec = parse_spec('spec main use "base.share"', str(tmp_path / "main.share"))
    assert spec.values == {"kept": "A"}


def test_keys_are_named_after_open_ranges_and_choices():
    text = f"{HEAD}share s where late or attention per layer in 24.., 1 if attention else layer rank 2 via SS"
    plan, _ = build_plan(parse_spec(text), preset("llama-7b"))
    assert {pool.tensor for pool in plan.pools} >= {
        "s.layer_in_24_to_true.1_if_attention_else_layer_1.A",
        "s.layer_in_24_to_true.1_if_attention_else_layer_25.A",
    }


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ("scale 2 / (1 + layer)", lambda layer, kind: (2 / (1 + layer), 0)),
        ("scale 1 if q_proj else -1", lambda layer, kind: (1 if kind == "q_proj" else -1, 0)),
        ("scale 1 + late", lambda layer, kind: (1 + (layer >= 24), 0)),
        (
            "scale rank if attention else 1",
            lambda layer, kind: (2 if attention(layer, kind) else 1, 0),
        ),
        ("dropout layer / 100", lambda layer, kind: (1, layer / 100)),
        ("alpha 8 scale alpha * 2 ** layer", lambda layer, kind: (8 * 2**layer, 0)),
    ],
)
def test_scale_and_dropout_of_each_module(clause, expected):
    share = f"share s per module rank 2 {clause}"
    plan, _ = build_plan(parse_spec(f"{HEAD}{share}"), preset("llama-7b"))
    sites = {site.path: site for site in plan.sites}
    for term in plan.terms:
        site = sites[term.site]
        assert (term.scale, term.dropout) == expected(site.layer, site.kind)


def test_start_of_each_scale_is_that_part_of_the_weight():
    text = f"{HEAD}share s per module rank 2 scale 1 + layer init A svd, B svd"
    plan, _ = build_plan(parse_spec(text), preset("llama-7b"))
    for term in plan.terms:
        if not term.share.endswith(".start"):
            amounts = {plan.tensor[name].amount for name in term.tensors.values()}
            assert amounts == {term.scale**-0.5}
