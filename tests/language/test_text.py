import pytest

from bishare_dsl.diagnostics import SpecError
from bishare_dsl.language import parse_spec, spec_text
from bishare_dsl.spec import (
    And,
    Arm,
    Gain,
    Let,
    Member,
    Not,
    Or,
    RankMatch,
    Selection,
    Settings,
    Share,
    Spec,
    Via,
)

Q = Selection(include=("q_proj",))


def spec(**share):
    return Spec(
        name="x",
        target=Q,
        shares=(Share(**{"name": "s", "per": "layer", "rank": 1, **share}),),
    )


def test_every_clause_is_said():
    text = spec_text(
        spec(
            per=None,
            keys={"A": "model", "B": ("layer", "kind"), "K_A": "kind"},
            where=Q,
            via=Via(transform="KE", options={"size": 4}),
            alpha=1,
            scale=2,
            dropout=0.5,
            init={"A": "ones", "K_B": "zeros"},
            freeze=("A", "K_A"),
            gain=Gain(rank=0.1, out=0),
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
        spec(per=(And(all_of=()),)),
        spec(keys={"A": (Not(negated=And(all_of=())),)}),
        spec(where=Selection(include=())),
        spec(per=(Member(value="layer", among=()),)),
        spec(rank=RankMatch(subject="kind", arms=())),
        spec(rank=RankMatch(subject="kind", arms=(Arm(values=(), rank=1),), otherwise=1)),
        spec(via=Via(transform="KE", options={"size": And(all_of=())})),
        spec(gain=Gain.model_construct(rank=float("inf"), out=None)),
        spec(freeze=("A", "A")),
        spec(name="\ud800"),
        spec(rank=2**70),
        Spec(name="x", target=Q, shares=()),
        spec().model_copy(update={"lets": (Let(name="a", selection=Selection(include=("a",))),)}),
    ],
)
def test_what_no_text_may_say_is_an_error(broken):
    with pytest.raises(SpecError):
        spec_text(broken)


def test_what_a_text_would_say_otherwise_is_an_error():
    for scale in (And(all_of=(1,)), Or(any_of=("a",))):
        said = Spec(name="x", target=Q, defaults=Settings(scale=scale), shares=spec().shares)
        with pytest.raises(SpecError, match="BS140"):
            spec_text(said)


def test_a_key_of_no_part_is_model():
    assert parse_spec(spec_text(spec(per=()))).shares[0].per == ()
