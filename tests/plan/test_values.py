"""Ranks that a let, a choice or an open range decides, site by site."""

import pytest

from bishare_dsl.language import parse_spec, spec_text
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


GROUP = "let group = match layer { 0..1: 0; 2..29: 1; else: 2 }"


def planned(lets, share):
    plan, problems = build_plan(parse_spec(f"{HEAD}{lets}\n{share}"), preset("llama-7b"))
    return plan, [p for p in problems if p.code != "BS213"]


def test_let_names_a_key_and_its_tensors():
    plan, problems = planned(GROUP, "share s per group, kind rank 4")
    assert problems == []
    kinds = ("q_proj", "v_proj", "up_proj")
    names = {
        f"s.group_{group}.{kind}.{role}" for group in range(3) for kind in kinds for role in "AB"
    }
    assert {tensor.name for tensor in plan.tensors} == names
    members = {pool.tensor: len(pool.members) for pool in plan.pools}
    assert [members[f"s.group_{group}.q_proj.A"] for group in range(3)] == [2, 28, 2]


def test_new_arm_of_a_named_key_renames_no_other_tensor():
    more = "let group = match layer { 0..1: 0; 2..20: 1; 21..29: 3; else: 2 }"
    fewer, _ = planned(GROUP, "share s per group, kind rank 4")
    plan, _ = planned(more, "share s per group, kind rank 4")
    assert set(fewer.tensor) <= set(plan.tensor)


@pytest.mark.parametrize(
    ("lets", "share", "same"),
    [
        (GROUP, "share s where group == 1 per module rank 4", "share s where layer in 2..29 per module rank 4"),
        (GROUP, "share s per module rank 1 + group", "share s per module rank 3 - 2 * (layer < 2) - (layer in 2..29)"),
        ("let half = layer // 16", "share s per module rank match half { 0: 2; 1: 4 }", "share s per module rank 2 if layer < 16 else 4"),
        ("let n = 1 if late else 2", "share s per module rank 4 scale n", "share s per module rank 4 scale 1 if late else 2"),
        ("let a = layer // 8\nlet b = a % 2", "share s where b == 1 per module rank 2", "share s where layer // 8 % 2 == 1 per module rank 2"),
    ],
)  # fmt: skip
def test_named_value_is_the_value_wherever_it_stands(lets, share, same):
    plan, _ = planned(lets, share)
    expected, _ = planned("", same)
    assert plan.terms == expected.terms


def test_words_of_a_named_key():
    lets = "let group = match layer { 0..1: early; else: late_ones }"
    plan, problems = planned(lets, "share s per group, kind rank 4")
    assert problems == []
    assert "s.early.q_proj.A" in plan.tensor


def test_text_of_a_named_key():
    spec = parse_spec(f"{HEAD}{GROUP}\nshare s per group, kind rank 4\n")
    assert parse_spec(spec_text(spec)) == spec


def test_largest_value_at_a_module_of_the_share():
    where = "where q_proj or (up_proj and late)"
    plan, _ = planned(
        "", f"share s {where} per module rank largest(out) // 1376 scale in / largest(out)"
    )
    assert {term.rank for term in plan.terms} == {11008 // 1376}
    assert {term.scale for term in plan.terms} == {4096 / 11008}
    plan, _ = planned("", "share s where q_proj per module rank largest(out + layer) // 1000")
    assert {term.rank for term in plan.terms} == {(4096 + 31) // 1000}
