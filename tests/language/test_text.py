import pytest

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import SpecError
from bishare_dsl.language import parse_spec, spec_text

Q = m.Selection(include=("q_proj",))


def spec(**share):
    return m.Spec(
        name="x", target=Q, shares=(m.Share(**{"name": "s", "per": "layer", "rank": 1, **share}),)
    )


def test_every_clause_is_said():
    text = spec_text(
        spec(
            per=None,
            keys={"A": "model", "B": ("layer", "kind"), "K_A": "kind"},
            where=Q,
            via=m.Via(transform="KE", options={"size": 4}),
            alpha=1,
            scale=2,
            dropout=0.5,
            init={"A": "ones", "K_B": "zeros"},
            freeze=("A", "K_A"),
            gain=m.Gain(rank=0.1, out=0),
            nonzero_start=True,
        )
    )
    clauses = (
        "share s|where q_proj|A per model|B per layer, kind|K_A per kind|rank 1|via KE(size = 4)|alpha 1|scale 2|"
        "dropout 0.5|init A ones, K_B zeros|freeze A, K_A|gain rank init 0.1, out init 0|start nonzero"
    )
    # Too long for one line: a clause a line.
    assert text.split("\n\n")[-1] == clauses.replace("|", "\n    ") + "\n"


@pytest.mark.parametrize(
    "broken",
    [
        spec(per=(m.And(all_of=()),)),
        spec(keys={"A": (m.Not(negated=m.And(all_of=())),)}),
        spec(where=m.Selection(include=())),
        spec(per=(m.Member(value="layer", among=()),)),
        spec(rank=m.Cases(subject="kind", arms=())),
        spec(rank=m.Cases(subject="kind", arms=(m.Arm(values=(), result=1),), otherwise=1)),
        spec(via=m.Via(transform="KE", options={"size": m.And(all_of=())})),
        spec(gain=m.Gain.model_construct(rank=float("inf"), out=None)),
        spec(freeze=("A", "A")),
        spec(name="\ud800"),
        spec(rank=2**70),
        m.Spec(name="x", target=Q, shares=()),
        spec().model_copy(
            update={"lets": (m.Let(name="a", selection=m.Selection(include=("a",))),)}
        ),
    ],
)
def test_what_no_text_may_say_is_an_error(broken):
    with pytest.raises(SpecError):
        spec_text(broken)


def test_what_a_text_would_say_otherwise_is_an_error():
    for scale in (m.And(all_of=(1,)), m.Or(any_of=("a",))):
        said = m.Spec(name="x", target=Q, defaults=m.Settings(scale=scale), shares=spec().shares)
        with pytest.raises(SpecError, match="BS140"):
            spec_text(said)


def test_a_key_of_no_part_is_model():
    assert parse_spec(spec_text(spec(per=()))).shares[0].per == ()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 ** 3 ** 2", m.Binary(op="**", left=2, right=m.Binary(op="**", left=3, right=2))),
        ("(2 ** 3) ** 2", m.Binary(op="**", left=m.Binary(op="**", left=2, right=3), right=2)),
        ("-2 ** 2", m.Binary(op="-", left=0, right=m.Binary(op="**", left=2, right=2))),
        ("(-2) ** 2", m.Binary(op="**", left=-2, right=2)),
        ("2 ** -1 * 3", m.Binary(op="*", left=m.Binary(op="**", left=2, right=-1), right=3)),
        ("--r", m.Binary(op="-", left=0, right=m.Binary(op="-", left=0, right="r"))),
    ],
)
def test_a_power_binds_tighter_than_a_sign_and_starts_on_the_right(text, value):
    read = parse_spec(f"spec s\nparam r = 2\ntarget q_proj\nshare s per module rank {text}\n")
    assert read.shares[0].rank == value
    assert f"rank {text}\n" in spec_text(read)


def test_a_match_stands_where_an_expression_stands():
    text = (
        "share s  where match layer { 0..3: q_proj; else: v_proj }"
        "  per match kind { q_proj: 0; else: 1 }, layer"
        "  rank 2 * match layer { 0: 1; else: 2 }"
    )
    read = parse_spec(f"spec s\ntarget q_proj, v_proj\n{text}\n")
    assert spec_text(read).count("match") == 3
    assert parse_spec(spec_text(read)) == read
