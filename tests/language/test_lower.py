import pytest

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import SpecError
from bishare_dsl.language import parse_spec, read
from bishare_dsl.language.lower import validated

TEXT = """spec x
param r = 4
let mlp = gate_proj, kind "up*" except down_proj
target path "*.mlp.*"
init A ones
share s  where mlp and layer in {0, -2..-1}  per layer // 4, kind  rank match kind { q, k: r; else: 2 }
  via KE(size = r + 1)  scale alpha / sqrt(rank)
share t  per model  rank -3  start nonzero
share u  K_A per kind  B per  model  A per layer, kind  rank r  freeze A, K_A  gain out init 0, rank init r / 10
"""


def at(*loc):
    _, where = read(TEXT)
    span = where.spans[loc]
    return TEXT[span.start : span.end]


def test_every_part_is_found_in_the_text():
    assert at("lets", 0, "selection", "exclude", 0) == "down_proj"
    assert at("target", "include", 0) == 'path "*.mlp.*"'
    assert at("defaults", "init", "A") == "ones"
    assert at("shares", 0) == "share s"
    assert at("shares", 0, "where", "include", 0, "all_of", 1, "among", 1) == "-2..-1"
    assert at("shares", 0, "per", 0, "right") == "4"
    assert at("shares", 0, "rank", "arms", 0, "values", 1) == "k"
    assert at("shares", 0, "rank", "otherwise") == "2"
    assert at("shares", 0, "via", "options", "size", "left") == "r"
    assert at("shares", 0, "scale") == "alpha / sqrt(rank)"
    assert at("shares", 1, "per") == "model"
    assert at("shares", 1, "rank") == "-3"
    assert at("shares", 1, "nonzero_start") == "start nonzero"
    assert at("shares", 2, "keys", "A") == "layer, kind"
    assert at("shares", 2, "keys", "A", 1) == "kind"
    assert at("shares", 2, "keys", "B") == "model"
    assert at("shares", 2, "keys", "K_A") == "kind"
    assert at("shares", 2, "keys", "K_A", "name") == "K_A"
    assert at("shares", 2, "freeze") == "freeze A, K_A"
    assert at("shares", 2, "freeze", 1) == "K_A"
    assert at("shares", 2, "gain") == "gain out init 0, rank init r / 10"
    assert at("shares", 2, "gain", "rank", "right") == "10"


def test_what_pydantic_refuses_is_told_at_its_place():
    spec, where = read(TEXT)
    data = spec.model_dump()
    data["params"][0]["value"] = float("inf")
    data["shares"][0]["per"][0]["op"] = "^"
    with pytest.raises(SpecError) as caught:
        validated(data, where)
    found = {problem.loc: problem.code for problem in caught.value.problems}
    assert found[("params", 0, "value")] == "BS141"
    assert found[("shares", 0, "per", 0)] == "BS141"
    assert set(found.values()) == {"BS141"}
    assert "3 | let" not in str(caught.value)
    assert "2 | param r = 4\n" in str(caught.value)


def test_the_values():
    spec = parse_spec(TEXT)
    assert spec.lets[0].selection.include == (
        m.Ref(ref="gate_proj"),
        m.Match(attribute="kind", pattern="up*"),
    )
    assert spec.shares[0].where.include == (
        m.And(all_of=("mlp", m.Member(value="layer", among=(0, m.Range(first=-2, last=-1))))),
    )
    assert spec.shares[1] == m.Share(name="t", per="model", rank=-3, nonzero_start=True)
    assert spec.shares[2] == m.Share(
        name="u",
        keys={"A": ("layer", "kind"), "B": "model", "K_A": "kind"},
        rank="r",
        freeze=("A", "K_A"),
        gain=m.Gain(out=0, rank=m.Binary(op="/", left="r", right=10)),
    )


def test_a_word_of_the_language_names_a_tensor_in_quotes():
    spec = parse_spec('spec x target q share s per layer rank 1 freeze "rank", "A", B')
    assert spec.shares[0].freeze == ("rank", "A", "B")


def expression(text):
    return parse_spec(f"spec x target q share s per {text} rank 1").shares[0].per[0]


def test_precedence_is_pythons():
    assert expression("a - b - c * d") == m.Binary(
        op="-",
        left=m.Binary(op="-", left="a", right="b"),
        right=m.Binary(op="*", left="c", right="d"),
    )
    assert expression("a or b and c") == m.Or(any_of=("a", m.And(all_of=("b", "c"))))
    assert expression("(a or b) and c") == m.And(all_of=(m.Or(any_of=("a", "b")), "c"))
    # `in` is an attribute where a value stands, and an operator where one may follow.
    assert expression("in in {in}") == m.Member(value="in", among=("in",))


def test_if_binds_least_and_goes_on_to_the_right():
    assert expression("1 if a or b else 2 if c else 3") == m.If(
        then=1,
        condition=m.Or(any_of=("a", "b")),
        otherwise=m.If(then=2, condition="c", otherwise=3),
    )


@pytest.mark.parametrize("clause", ["rank 8", "rank r", "rank (8)", "rank match kind { else: 8 }"])
def test_a_clause_behind_an_open_range_is_none_of_its_ends(clause):
    spec = parse_spec(
        f"spec x param r = 8 target q share s per layer where layer in 3.. {clause} alpha 2"
    )
    assert spec.shares[0].where == m.Selection(
        include=(m.Member(value="layer", among=(m.Range(first=3),)),)
    )
    assert spec.shares[0].alpha == 2
    ended = parse_spec("spec x target q share s per layer rank 8 where layer in 3..rank alpha 2")
    assert ended.shares[0].where.include[0].among == (m.Range(first=3, last="rank"),)
